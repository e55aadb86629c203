"""What Ray does not say of a Serve config: which of its keys it ignores, and what fails only when deployed."""

import importlib
import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve._private.build_app import build_app as build_deployments
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from caption_ray.config import Settings
from caption_ray.serve.captioner import CaptionerConfig
from caption_ray.serve.deployment import ServeArguments

USER_CONFIGS: dict[str, type[Settings]] = {"CaptionerReplica": CaptionerConfig}


def problems(config: dict[str, typing.Any], bundle: str) -> list[str]:
    """Return what is wrong with a config, as `place: reason`. bundle: one to build the application with."""
    return [*_unknown_keys(config, ServeDeploySchema, "config"), *_refused_values(config, bundle)]


def _unknown_keys(value: object, model: type[BaseModel], place: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(item, model, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in model.model_fields:
                yield f"{place}: unknown key {key!r}"
                continue
            for below in _models_in(model.model_fields[key].annotation):
                yield from _unknown_keys(inner, below, f"{place}.{key}")


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)


def _refused_values(config: dict[str, typing.Any], bundle: str) -> Iterator[str]:
    yield from _refusal(ServeDeploySchema, config, "config")
    for application in config.get("applications", []):
        name = application.get("name")
        module, _, function = application.get("import_path", ":").partition(":")
        try:
            builder = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            yield f"{name}.import_path: {error}"
            continue
        arguments = {"bundle": bundle, **(application.get("args") or {})}
        if wrong := list(_refusal(ServeArguments, arguments, f"{name}.args")):
            yield from wrong
            continue
        built = build_deployments(
            builder(ServeArguments.model_validate({**arguments, "bundle": bundle})), name=name or "x"
        )
        known = {deployment.name for deployment in built.deployments}
        for deployment in application.get("deployments", []):
            place = f"{name}.{deployment.get('name')}"
            if deployment.get("name") not in known:
                yield f"{place}: no such deployment; there are {sorted(known)}"
            yield from _refusal(AutoscalingConfig, deployment.get("autoscaling_config") or {}, f"{place}.autoscaling")
            if "user_config" in deployment:
                model = USER_CONFIGS.get(deployment.get("name"))
                if model is None:
                    yield f"{place}: takes no user_config"
                else:
                    yield from _refusal(model, deployment["user_config"], f"{place}.user_config")
            runtime_env = (deployment.get("ray_actor_options") or {}).get("runtime_env") or {}
            yield from (
                f"{place}.runtime_env: unknown key {key!r}" for key in set(runtime_env) - RuntimeEnv.known_fields
            )


def _refusal(model: type[BaseModel], value: object, place: str) -> Iterator[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        yield from (f"{place}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())

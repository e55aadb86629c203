"""The application on Ray Serve: an ingress that speaks HTTP and decodes pictures, and replicas of the model behind it.

`serve run serve_config.yaml` builds it by `build_app`. No `from __future__ import annotations` here: Serve checks
`args` against the builder's annotation only where that is a class, and takes anything where it is a string.
"""

import os
from pathlib import Path

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caption_ray import storage
from caption_ray.bundle import read_manifest
from caption_ray.config import Settings
from caption_ray.errors import BundleError, UsageError
from caption_ray.serve.access_log import configure_access_log
from caption_ray.serve.app import create_app
from caption_ray.serve.captioner import CaptionerConfig, CaptionerReplica, log_through_serve
from caption_ray.serve.handle import ServeBackend
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.middleware import KEYS_VARIABLE, api_keys_from_environment
from caption_ray.serve.ray_metrics import RayExporter
from caption_ray.serve.schemas import Limits

BUNDLE_VARIABLE = "CAPTION_RAY_BUNDLE"

_QUICKSTART_BUNDLE = Path(__file__).parents[2] / "runs" / "quickstart" / "bundle"


class ServeArguments(Settings):
    """The application's `args`. Another value restarts the replicas; to swap the bundle alone, see `user_config`."""

    bundle: str | None = Field(
        None,
        description=f"Folder or URI of the bundle; by default what {BUNDLE_VARIABLE} names, else the quick start's.",
    )
    limits: Limits = Field(default_factory=Limits)
    require_api_keys: bool = Field(
        False, description=f"Refuse to start an ingress that finds no API keys: {KEYS_VARIABLE} must be where it runs."
    )


@serve.deployment
@serve.ingress()
class Ingress:
    """Speaks HTTP: checks and decodes pictures, asks a replica, words the answer."""

    def __init__(self, captioner: DeploymentHandle, limits: Limits, keys_expected: bool) -> None:
        log_through_serve()
        configure_access_log()
        self._captioner = captioner
        self._limits = limits
        self._keys_expected = keys_expected

    def __serve_build_asgi_app__(self) -> Starlette:
        """Build the app in the replica's own process; the keys come from its environment and pass through no config."""
        keys = find_api_keys(self._keys_expected)
        backend = ServeBackend(self._captioner, self._limits.retry_after_s)
        metrics = ServiceMetrics(RayExporter())
        app = create_app(backend, self._limits, api_keys=keys, metrics=metrics)
        app.add_middleware(_RequestIdOnce)
        return app


class _RequestIdOnce:
    """Leaves X-Request-ID to Serve's proxy, which adds it to every answer and has sent the same along with the request.

    Where the app did not take that over, both are in the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("x-request-id") == Headers(scope=scope).get("x-request-id"):
                    del headers["x-request-id"]
            await send(message)

        await self.app(scope, receive, send_once)


def build_app(args: ServeArguments) -> Application:
    """Return the application. Raises BundleError where the bundle is absent, before any process is started for it."""
    bundle = find_bundle(args.bundle)
    captioner = CaptionerReplica.options(user_config=CaptionerConfig().model_dump())  # type: ignore[attr-defined]
    keys_expected = args.require_api_keys or KEYS_VARIABLE in os.environ
    application: Application = Ingress.bind(  # type: ignore[attr-defined]
        captioner.bind(bundle), args.limits, keys_expected
    )
    return application


def find_api_keys(expected: bool) -> list[str]:
    """Return the keys in this process' environment. Raises UsageError where they are expected and not there."""
    keys = api_keys_from_environment()
    if expected and not keys:
        raise UsageError(
            f"an ingress finds no {KEYS_VARIABLE}; set it where Ray is started on each node (before `ray start`, or in "
            "the pod): what is set in the shell of `serve run` does not reach a Ray that runs already"
        )
    return keys


def find_bundle(asked: str | None) -> str:
    """Return where the bundle is: as asked, or by the environment, or the quick start's in this clone.

    Raises BundleError where there is none.
    """
    named = asked or os.environ.get(BUNDLE_VARIABLE)
    location = storage.absolute(named or _QUICKSTART_BUNDLE)
    try:
        read_manifest(location)
    except BundleError as error:
        if named or storage.exists(location):
            raise
        raise BundleError(
            f"{location}: there is no bundle yet; train one in two minutes by `python jobs/quickstart.py`, or name "
            f"another by {BUNDLE_VARIABLE}, or by `args: {{bundle: ...}}` in serve_config.yaml"
        ) from error
    return location

"""The Serve config as a file that people keep: which bundle it names, and another one put in, all else as it was."""

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from caption_ray import storage
from caption_ray.errors import UsageError

DEPLOYMENT = "CaptionerReplica"

_PLAIN = re.compile(r"[A-Za-z/.][\w./:@+=~%-]*/[\w./:@+=~%-]*[\w./@+=~%-]", re.ASCII)
"""A location that is the same text in YAML without quotes, in flow style too; other ones are quoted."""


def bundle_in(path: str, application: str | None = None) -> str | None:
    """Return the bundle that a Serve config names, in `user_config` or else in `args`; None where it names none.

    application: whose, where several have the captioner's deployment.  Raises UsageError where the file is no config of
    this service.
    """
    content = _read(path)
    place = _find(content, path, application)
    named = _user_config(content, place, path).get("bundle")
    if named is None:
        args = _mapping(content["applications"][place[0]].get("args"), path, "args")
        named = args.get("bundle")
    return None if named is None else str(named)


def with_bundle(path: str, bundle: str, application: str | None = None) -> str:
    """Return the config's text with `user_config.bundle` set: the setting that a running service takes over by itself.

    Every other character stays. Raises UsageError where the file is no config of this service, or one in which that
    cannot be said without saying something else too.
    """
    content = _read(path)
    at_application, at_deployment = place = _find(content, path, application)
    wanted = copy.deepcopy(content)
    settings = {**_user_config(content, place, path), "bundle": bundle}
    wanted["applications"][at_application]["deployments"][at_deployment]["user_config"] = settings
    text = storage.read_text(path)
    deployments = _value(_value(YAML().compose(text), "applications").value[at_application], "deployments")
    changed = _splice(text, deployments.value[at_deployment], _scalar(bundle))
    try:
        said = YAML(typ="safe", pure=True).load(changed)
    except YAMLError:
        said = None
    if said != wanted:
        raise UsageError(
            f"{path}: `bundle` cannot be put into the user_config of {DEPLOYMENT} without changing something else "
            "(anchors, merged keys?); write it there by hand, once"
        )
    return changed


def http_address(path: str) -> tuple[str, int]:
    """Return the host and port that the service listens on, by Ray's defaults where it names none.

    Raises UsageError for a port that is none.
    """
    options = _mapping(_read(path).get("http_options"), path, "http_options")
    host, port = options.get("host", "0.0.0.0"), options.get("port", 8000)
    try:
        return str(host), int(port)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: http_options.port: {port!r}: must be a number") from error


def route_prefix(path: str, application: str | None = None) -> str:
    """Return what the paths of the service begin with: nothing, or /name."""
    content = _read(path)
    found = content["applications"][_find(content, path, application)[0]]
    return str(found.get("route_prefix") or "/").rstrip("/")


def application_names(path: str) -> frozenset[str]:
    """Return the names of all applications of the config."""
    return frozenset(_name(application) for application in _list_of_mappings(_read(path), path, "applications"))


def _read(path: str) -> Any:
    try:
        content = YAML(typ="safe", pure=True).load(storage.read_text(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such Serve config; name one by --serve-config") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a Serve config: it should map `applications` to a list")
    return content


def _find(content: Mapping[str, Any], path: str, application: str | None) -> tuple[int, int]:
    """Return where the captioner's deployment is: the number of its application, and its own in there."""
    found, names = [], []
    for at, one in enumerate(_list_of_mappings(content, path, "applications")):
        for inner, deployment in enumerate(_list_of_mappings(one, path, "deployments")):
            if deployment.get("name") == DEPLOYMENT and application in (None, _name(one)):
                found.append((at, inner))
                names.append(_name(one))
    if len(found) == 1:
        return found[0]
    if not found:
        of = "" if application is None else f" in an application {application!r}"
        raise UsageError(f"{path}: no deployment named {DEPLOYMENT}{of}; start from serve_config.yaml")
    raise UsageError(
        f"{path}: {len(found)} deployments named {DEPLOYMENT}, of the applications {', '.join(names)}; "
        "name one application by --application"
    )


def _name(application: Mapping[str, Any]) -> str:
    """Return an application's name; one without is `default`, as Serve calls it."""
    return str(application.get("name", "default"))


def _user_config(content: Mapping[str, Any], place: tuple[int, int], path: str) -> Mapping[str, Any]:
    deployment = content["applications"][place[0]]["deployments"][place[1]]
    return _mapping(deployment.get("user_config"), path, "user_config")


def _mapping(value: object, path: str, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: `{name}` must map names to values, and is {value!r}")
    return value


def _list_of_mappings(parent: Mapping[str, Any], path: str, name: str) -> list[Mapping[str, Any]]:
    values = parent.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UsageError(f"{path}: `{name}` must be a list of mappings, and is {values!r}")
    return values


def _splice(text: str, deployment: MappingNode, bundle: str) -> str:
    """Return the text with the bundle put in, in the style of what is around it."""
    newline = "\r\n" if "\r\n" in text else "\n"
    settings = _value(deployment, "user_config")
    if settings is None:
        name = _value(deployment, "name")
        if deployment.flow_style:
            return _insert(text, name.end_mark.index, f", user_config: {{bundle: {bundle}}}")
        indent = " " * deployment.value[0][0].start_mark.column
        line_end = re.compile(r"\r?\n|\Z").search(text, name.end_mark.index)
        assert line_end is not None
        return _insert(text, line_end.start(), f"{newline}{indent}user_config: {{bundle: {bundle}}}")
    if isinstance(settings, ScalarNode):  # null, or nothing at all
        return _replace(text, deployment, "user_config", f"{{bundle: {bundle}}}")
    if _value(settings, "bundle") is not None:
        return _replace(text, settings, "bundle", bundle)
    if settings.flow_style:
        return _insert(text, settings.start_mark.index + 1, f"bundle: {bundle}{', ' if settings.value else ''}")
    first = settings.value[0][0].start_mark
    return _insert(text, first.index, f"bundle: {bundle}{newline}{' ' * first.column}")


def _value(node: Node, key: str) -> Any:
    """Return the node of a key's value, None where the mapping has no such key."""
    return next((value for name, value in node.value if name.value == key), None)


def _insert(text: str, at: int, addition: str) -> str:
    return text[:at] + addition + text[at:]


def _replace(text: str, mapping: Node, key: str, value: str) -> str:
    name, node = next((name, node) for name, node in mapping.value if name.value == key)
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:  # nothing is there, and the marks are somewhere after the colon
        return _insert(text, text.index(":", name.end_mark.index) + 1, f" {value}")
    return text[:start] + value + text[end:]


def _scalar(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)

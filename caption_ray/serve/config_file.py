"""The Serve config as a file that people keep: which bundle it names, and another one put in, all else as it was."""

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from caption_ray import storage
from caption_ray.errors import UsageError

DEPLOYMENT = "CaptionerReplica"


def bundle_in(path: str) -> str | None:
    """Return the bundle that a Serve config names, in `user_config` or else in `args`; None where it names none.

    Raises UsageError where the file is no config of this service.
    """
    application, deployment = _find(_read(path), path)
    named = (deployment.get("user_config") or {}).get("bundle") or (application.get("args") or {}).get("bundle")
    return None if named is None else str(named)


def with_bundle(path: str, bundle: str) -> str:
    """Return the config's text with `user_config.bundle` set: the setting that a running service takes over by itself.

    Comments, order and quotes stay. Raises UsageError where the file is no config of this service.
    """
    content = _read(path)
    _, deployment = _find(content, path)
    if deployment.get("user_config") is None:
        deployment["user_config"] = CommentedMap()
    settings = deployment["user_config"]
    if "bundle" in settings:
        settings["bundle"] = bundle
    else:
        settings.insert(0, "bundle", bundle)
    stream = io.StringIO()
    _yaml().dump(content, stream)
    return stream.getvalue()


def http_address(path: str) -> tuple[str, int]:
    """Return the host and port that the service listens on."""
    options = _read(path).get("http_options") or {}
    return str(options.get("host", "127.0.0.1")), int(options.get("port", 8000))


def _yaml() -> YAML:
    yaml = YAML()  # of the kind that keeps comments
    yaml.preserve_quotes = True
    yaml.width = 1 << 16  # no line is broken that was not
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _read(path: str) -> Any:
    try:
        content = _yaml().load(storage.read_text(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such Serve config; name one by --serve-config") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a Serve config: it should map `applications` to a list")
    return content


def _find(content: Any, path: str) -> tuple[Any, Any]:
    """Return the one application that has the captioner's deployment, and that deployment."""
    found = [
        (application, deployment)
        for application in content.get("applications") or []
        for deployment in application.get("deployments") or []
        if deployment.get("name") == DEPLOYMENT
    ]
    if len(found) != 1:
        raise UsageError(
            f"{path}: {len(found)} deployments named {DEPLOYMENT}, where one should be; start from serve_config.yaml"
        )
    return found[0]

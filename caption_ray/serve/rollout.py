"""Telling a running service of a changed Serve config, and waiting until the new bundle answers."""

import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from caption_ray.errors import RunError
from caption_ray.serve.config_file import http_address
from caption_ray.serve.middleware import api_keys_from_environment

logger = logging.getLogger(__name__)

_TIMEOUT_S = 180.0
_POLL_INTERVAL_S = 0.5


def roll_out(config: str, dashboard: str, model_id: str) -> None:
    """Do what `serve deploy` does, then wait until the service answers with the model of that id.

    dashboard: address of the cluster's dashboard.  The service goes on with its old bundle until the new one is loaded
    and verified, and where that is refused; then RunError is raised with its reason.
    """
    host, port = http_address(config)
    # A service that listens on all interfaces is where its dashboard is.
    service = f"http://{urlsplit(dashboard).hostname if host in ('0.0.0.0', '::') else host}:{port}"
    refused_before = _model(service).get("refused")
    command = [str(Path(sys.executable).with_name("serve")), "deploy", config, "--address", dashboard]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode != 0:
        raise RunError(f"`serve deploy {config} --address {dashboard}` failed: {_last_line(done.stderr)}")
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        model = _model(service)
        if model.get("id") == model_id:
            logger.info("%s now answers with %s", service, model_id[:12])
            return
        refused = model.get("refused")
        if refused and refused != refused_before:
            raise RunError(f"{service} refuses the new bundle, and goes on with its old one: {refused}")
        time.sleep(_POLL_INTERVAL_S)
    raise RunError(f"{service}: no answer from the new model within {_TIMEOUT_S:.0f} s; see {service}/v1/model")


def _environment() -> dict[str, str]:
    """Have the command send the cluster's token where there is one: it does so only if told (Ray 2.60)."""
    has_token = (Path.home() / ".ray" / "auth_token").exists() or any(
        name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    )
    return {**({"RAY_AUTH_MODE": "token"} if has_token else {}), **os.environ}


def _model(service: str) -> dict[str, object]:
    """Return what the service says of its model; nothing where it does not answer."""
    keys = api_keys_from_environment()
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{service}/v1/model", headers=headers), timeout=30
        ) as answer:
            model: dict[str, object] = json.load(answer)
            return model
    except (OSError, ValueError):  # urllib's own errors are OSErrors
        return {}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"

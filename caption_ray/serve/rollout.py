"""Telling a running service of a changed Serve config, and waiting until the new bundle answers."""

import http.client
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from caption_ray.errors import RunError
from caption_ray.serve.config_file import application_names, http_address, route_prefix
from caption_ray.serve.middleware import KEYS_VARIABLE, api_keys_from_environment

logger = logging.getLogger(__name__)

_TIMEOUT_S = 180.0
_POLL_INTERVAL_S = 0.5
_SAME_REFUSAL_S = 20.0
"""A refusal in the words of an earlier one counts after so long: until then it may be the earlier one."""

NUM_ANSWERS = 20
"""Answers in a row that must come from the new model: each is by whichever replica Serve chooses."""


class NotToldError(RunError):
    """Nothing has been deployed: the service has not been told of a config."""


def roll_out(config: str, dashboard: str, model_id: str, application: str | None = None) -> None:
    """Deploy the config, then wait until the service answers with the model of that id.

    dashboard: address of the cluster's dashboard.  application: that of the service, where the config has several with
    a captioner.  The service goes on with its old bundle until the new one is loaded and verified, and where that is
    refused; then RunError is raised with its reason. NotToldError: it wants another API key, and as `deploy` raises it.
    """
    host, port = http_address(config)
    # A service that listens on all interfaces is where its dashboard is.
    host = urlsplit(dashboard).hostname or host if host in ("0.0.0.0", "::") else host
    service = f"http://{host}:{port}{route_prefix(config, application)}"
    try:
        refused_before = _refusals(service)
    except RunError as error:
        raise NotToldError(f"{error}") from error
    deploy(config, dashboard)
    wait_for_model(service, model_id, refused_before)


def deploy(config: str, dashboard: str) -> None:
    """Do what `serve deploy` does.

    Raises RunError where that fails, NotToldError where it is not tried: without a dashboard that answers, or where it
    would end applications that others have deployed, since the config says all that is to run on the cluster.
    """
    others = _deployed(dashboard) - application_names(config)
    if others:
        raise NotToldError(
            f"{dashboard}: `serve deploy {config}` would end what else is deployed there: {', '.join(sorted(others))}; "
            "deploy from a config that has these applications too"
        )
    command = [str(Path(sys.executable).with_name("serve")), "deploy", config, "--address", dashboard]
    told = {"RAY_AUTH_MODE": "token"} if _token() else {}  # the command sends a token only if told (Ray 2.60)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**told, **os.environ})
    except FileNotFoundError as error:
        raise NotToldError(f"{command[0]}: not there; install caption_ray and its Ray in this environment") from error
    if done.returncode != 0:
        raise RunError(f"`serve deploy {config} --address {dashboard}` failed: {_last_line(done.stderr)}")


def wait_for_model(service: str, model_id: str, refused_before: Collection[str] = ()) -> None:
    """Wait until NUM_ANSWERS answers in a row come from the model of that id.

    refused_before: what replicas said of the last bundles that they refused, before they were given this one.  Raises
    RunError where one refuses it, or it does not answer in time.
    """
    started, in_a_row = time.monotonic(), 0
    while (waited := time.monotonic() - started) < _TIMEOUT_S:
        model = _model(service)
        refused = model.get("refused")
        if refused and (refused not in refused_before or waited > _SAME_REFUSAL_S):
            raise RunError(f"{service} refuses the new bundle, and goes on with its old one: {refused}")
        in_a_row = in_a_row + 1 if model.get("id") == model_id else 0
        if in_a_row == NUM_ANSWERS:
            logger.info("%s now answers with %s", service, model_id[:12])
            return
        if not in_a_row:
            time.sleep(_POLL_INTERVAL_S)
    raise RunError(f"{service}: no answer from the new model within {_TIMEOUT_S:.0f} s; see {service}/v1/model")


def _deployed(dashboard: str) -> set[str]:
    """Return the applications that `serve deploy` and the like have brought onto the cluster."""
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        found = _get(f"{dashboard.rstrip('/')}/api/serve/applications/", headers)["applications"]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise NotToldError(
            f"{dashboard}: this dashboard does not say what it serves: {error}; is it a cluster's?"
        ) from error
    return {name for name, application in found.items() if application.get("source") == "declarative"}


def _token() -> str | None:
    """Return the cluster's token, from where Ray itself looks for it."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.exists() else None


def _refusals(service: str) -> set[str]:
    """Return what replicas say of the last bundles that they refused; each answer is by whichever Serve chooses."""
    found: set[str] = set()
    for _ in range(NUM_ANSWERS):
        model = _model(service)
        if not model:
            break
        if refused := model.get("refused"):
            found.add(refused)
    return found


def _model(service: str) -> dict[str, Any]:
    """Return what the service says of its model, nothing where it does not answer. RunError: it wants another key."""
    keys = api_keys_from_environment()
    try:
        return _get(f"{service}/v1/model", {"Authorization": f"Bearer {keys[0]}"} if keys else {})
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            rule = "it does not know the first key in it" if keys else "it asks for a key"
            raise RunError(f"{service}/v1/model answers {error.code}: set {KEYS_VARIABLE} here too; {rule}") from error
        return {}
    except (OSError, ValueError, http.client.HTTPException):
        return {}


def _get(url: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the JSON object at an address. Raises OSError, of which urllib's own errors are, and ValueError."""
    host = urlsplit(url).hostname
    # A proxy that the environment names is somewhere else, where this machine is another.
    proxies = [urllib.request.ProxyHandler({})] if host in ("localhost", "127.0.0.1", "::1") else []
    opener = urllib.request.build_opener(*proxies)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"

"""The application on Ray Serve: an ingress that speaks HTTP and decodes pictures, and replicas of the model behind it.

`serve run serve_config.yaml` builds it by `build_app`. No `from __future__ import annotations` here: Serve checks
`args` against the builder's annotation only where that is a class, and takes anything where it is a string.
"""

import os
from pathlib import Path

from pydantic import Field
from ray.serve import Application

from caption_ray import storage
from caption_ray.bundle import BUNDLE_VARIABLE, read_manifest
from caption_ray.config import Settings
from caption_ray.errors import BundleError
from caption_ray.serve.captioner import CaptionerConfig, CaptionerReplica
from caption_ray.serve.ingress import Ingress
from caption_ray.serve.middleware import KEYS_VARIABLE
from caption_ray.serve.schemas import Limits

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


def build_app(args: ServeArguments) -> Application:
    """Return the application. Raises BundleError where a bundle is named and absent, before any process is started.

    Where none is named, and the quick start's is not there, the captioner's `user_config` has to name one, of which
    nothing is known here; the replica finds out, and says what is said here otherwise.
    """
    absence: str | None = None
    try:
        bundle = find_bundle(args.bundle)
    except NoBundleYetError as error:
        bundle, absence = error.location, str(error)
    captioner = CaptionerReplica.options(user_config=CaptionerConfig().model_dump())  # type: ignore[attr-defined]
    keys_expected = args.require_api_keys or KEYS_VARIABLE in os.environ
    application: Application = Ingress.bind(  # type: ignore[attr-defined]
        captioner.bind(bundle, absence), args.limits, keys_expected
    )
    return application


class NoBundleYetError(BundleError):
    """No bundle is named, and the quick start's is not there."""

    def __init__(self, location: str) -> None:
        super().__init__(
            f"{location}: there is no bundle yet; train one in two minutes by `python jobs/quickstart.py`, or name "
            f"another by {BUNDLE_VARIABLE}, or by `args: {{bundle: ...}}` in serve_config.yaml"
        )
        self.location = location


def find_bundle(asked: str | None) -> str:
    """Return where the bundle is: as asked, or by the environment, or the quick start's in this clone.

    Raises BundleError where there is none; NoBundleYetError where none is named either.
    """
    named = asked or os.environ.get(BUNDLE_VARIABLE)
    location = storage.absolute(named or _QUICKSTART_BUNDLE)
    try:
        read_manifest(location)
    except BundleError as error:
        if named or storage.exists(location):
            raise
        raise NoBundleYetError(location) from error
    return location

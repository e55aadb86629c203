"""Where a model comes from, to be found again: which sweep, trial, settings, data and code."""

import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from pydantic import Field

import caption_ray
from caption_ray.config import Experiment, Settings

COMMIT_VARIABLE = "CAPTION_RAY_COMMIT"
"""Environment variable with the commit of code that was sent somewhere without its history."""


class Lineage(Settings):
    """What a sweep's best bundle says of itself, in `lineage.json`; copied along wherever it goes."""

    format_version: int = 1
    sweep: str = Field(description="Folder or URI of the sweep.")
    trial: int = Field(description="Number of the trial in it.")
    num_trials: int = Field(description="Trials among which it was the best.")
    preset: str = Field(description="Preset that the sweep started from.")
    experiment: Experiment = Field(description="All settings of the trial.")
    command: str = Field(description="What trains it again.")
    data_digest: str = Field(description="Digest of the prepared data set.")
    features_key: str | None = Field(description="Key of the feature cache.")
    metrics: dict[str, float] = Field(description="Dev scores, losses and speed after its best epoch.")
    caption_ray_version: str = Field(caption_ray.__version__, description="Version that trained it.")
    commit: str | None = Field(
        description="Commit of the code that trained it, '+' where files were changed; several where that changed."
    )
    made_at: datetime = Field(default_factory=lambda: datetime.now(timezone.utc))


def code_commit() -> str | None:
    """Return the commit of the checkout that this package is in, with a '+' where files differ from it.

    Where it is in none, or git is absent: what the environment says, or None.
    """
    folder = Path(caption_ray.__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # some other checkout may lie around it
        return _git(folder, "rev-parse", "HEAD") + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE) or None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

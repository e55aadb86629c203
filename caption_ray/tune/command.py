"""The command that trains a run again."""

import shlex
from collections.abc import Iterator, Mapping

from caption_ray.config import Experiment


def train_command(
    preset_name: str,
    preset: Experiment,
    experiment: Experiment,
    *,
    data: str,
    features: str,
    storage: str,
    name: str,
    device: str = "auto",
) -> str:
    """Return the command of jobs/train.py for an experiment: all that differs from its preset.

    With one worker, as trials have. The encoder is that of the features, and no flag says so.
    """
    command = ["python", "jobs/train.py", preset_name, "--data", data, "--features", features]
    command += ["--storage", storage, "--name", name, "--num-workers", "1"]
    command += ["--device", device] if device != "auto" else []
    asked, usual = experiment.model_dump(), preset.model_dump()
    del asked["encoder"], usual["encoder"]
    return shlex.join([*command, *_flags("", asked, usual)])


def _flags(prefix: str, asked: Mapping[str, object], preset: Mapping[str, object]) -> Iterator[str]:
    """Yield flags as tyro takes them."""
    for key, value in asked.items():
        name = key.replace("_", "-")
        other = preset[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _flags(f"{prefix}{name}.", value, other)
        elif value == other:
            continue
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{name}"
        elif isinstance(value, tuple):
            yield from (f"--{prefix}{name}", *map(str, value))
        else:
            yield from (f"--{prefix}{name}", str(value))

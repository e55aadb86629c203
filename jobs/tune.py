"""Sweep the settings of a preset, or go on with a sweep."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from caption_ray.config import Experiment, RunName, Settings
from caption_ray.entry import preset_command_line, run_job
from caption_ray.presets import PRESETS
from caption_ray.tune.records import StoppingConfig
from caption_ray.tune.space import SearchSpace, named_on, recentred, space_around

if TYPE_CHECKING:
    from caption_ray.tune.request import SweepRequest


class Arguments(Settings):
    """Train a preset with many settings, several at a time, the bad ones stopped early; the same command goes on."""

    data: str = Field(description="Prepared data set (see jobs/prepare_data.py).")
    features: str = Field(description="Cached features (see jobs/cache_features.py), read once for all trials.")
    storage: str = Field(description="Folder or URI under which runs and sweeps are kept.")
    name: RunName = Field(description="Name of the sweep; the best trial's bundle will be in STORAGE/NAME/best.")
    num_trials: int = Field(24, ge=1, description="Trials in all; the preset itself is the first of them.")
    search: Literal["random", "optuna"] = Field(
        "optuna", description="How settings are chosen: at random, or by Optuna's TPE from how earlier trials went."
    )
    stopping: StoppingConfig = Field(default_factory=StoppingConfig)
    seed: int = Field(0, ge=0, description="Seed of the search; that of the training is training.seed.")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="What the trials compute on.")
    cpus_per_trial: float = Field(1.0, gt=0, description="CPUs reserved per trial; also its threads, where not a GPU.")
    gpus_per_trial: float = Field(0.25, gt=0, le=1, description="Share of a GPU reserved per trial.")
    memory_per_trial_gb: float | None = Field(
        None, gt=0, description="Memory of a node reserved per trial, in 10^9 bytes; by default it is not looked at."
    )
    num_at_once: int | None = Field(None, ge=1, description="Trials that run together; by default as many as fit.")
    max_retries: int = Field(1, ge=0, description="Times that a failed trial is started again before it counts.")
    retry_failed: bool = Field(
        False, description="Start trials again that have failed in an earlier start of the sweep."
    )
    space: SearchSpace = Field(
        default_factory=SearchSpace, description="What is tried; by default around the experiment's own settings."
    )
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = Field(default_factory=Experiment)
    preset: Annotated[str, tyro.conf.Suppress] = "flickr8k"


def main(arguments: Arguments) -> dict[str, object]:
    """Sweep, and name the best trial."""
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.tune.sweep import sweep

    outcome = sweep(to_request(arguments))
    best = outcome.best
    return {
        "trial": best.record.number,
        **best.metrics,
        "settings": best.record.settings,
        "trials": {status: sum(one.status == status for one in outcome.standings) for status in _STATUSES},
        "epochs": sum(len(one.record.epochs) for one in outcome.standings),
        "bundle": outcome.bundle,
        "report": outcome.report,
        "leaderboard": outcome.leaderboard,
        "command": outcome.command,
    }


_STATUSES = ("finished", "stopped", "failed")


def to_request(arguments: Arguments) -> "SweepRequest":
    """Return what the command line asks for."""
    from caption_ray.tune.request import SweepRequest

    preset = PRESETS[arguments.preset]()
    asked = {name: getattr(arguments, name) for name in Arguments.model_fields}
    asked |= {"preset_name": arguments.preset, "preset": preset}
    asked["space"] = recentred(arguments.space, preset, arguments.experiment, named_on(sys.argv[1:]))
    return SweepRequest(**asked)


def command_line() -> type[Arguments]:
    """Return the type that tyro parses."""
    return preset_command_line(Arguments, lambda experiment: {"space": space_around(experiment)})


if __name__ == "__main__":
    run_job(main, command_line(), Arguments.__doc__)

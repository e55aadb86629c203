"""Train a captioning model, or go on with a run."""

from typing import Annotated, Literal

import tyro
from pydantic import Field

from caption_ray.config import Experiment, RunName, Settings
from caption_ray.entry import preset_command_line, run_job
from caption_ray.presets import PRESETS


class Arguments(Settings):
    """Train by a preset, any setting of which can be changed; the same command again goes on where it stopped.

    SIGTERM, SIGUSR1 or a file STORAGE/NAME/stop have it save and end with exit code 75.
    """

    data: str = Field(description="Prepared data set (see jobs/prepare_data.py).")
    features: str | None = Field(
        None, description="Cached features (see jobs/cache_features.py); without them pictures are streamed."
    )
    storage: str = Field(description="Folder or URI under which runs are kept.")
    name: RunName = Field(description="Name of the run; its bundle will be in STORAGE/NAME/bundle.")
    num_workers: int | None = Field(
        None, ge=1, description="Data-parallel workers; by default one per GPU, or one on CPUs."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="With how few of them training goes on where nodes are lost; by default it waits some minutes for "
        "all, and fails.",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="What the workers compute on.")
    cpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="CPUs reserved per worker, and threads of one on CPUs; by default all but one are shared out, at "
        "most one to a GPU's.",
    )
    stage: str | None = Field(
        None,
        description="Folder on a disk of each node, to which it copies what it reads of the data; ~ and variables such "
        "as $TMPDIR are the node's.",
    )
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = Field(default_factory=Experiment)
    preset: Annotated[str, tyro.conf.Suppress] = "flickr8k"


def main(arguments: Arguments) -> dict[str, object]:
    """Train and sum up the run."""
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.train.trainer import TrainRequest, train

    outcome = train(
        TrainRequest(
            experiment=arguments.experiment,
            preset=PRESETS[arguments.preset](),
            data=arguments.data,
            features=arguments.features,
            storage=arguments.storage,
            name=arguments.name,
            num_workers=arguments.num_workers,
            min_workers=arguments.min_workers,
            device=arguments.device,
            cpus_per_worker=arguments.cpus_per_worker,
            stage=arguments.stage,
        )
    )
    return {"bundle": outcome.bundle, "was_finished": outcome.was_finished, **outcome.metrics}


def command_line() -> type[Arguments]:
    """Return the type that tyro parses."""
    return preset_command_line(Arguments)


if __name__ == "__main__":
    run_job(main, command_line(), Arguments.__doc__)

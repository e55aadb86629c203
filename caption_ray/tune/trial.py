"""One trial: the function that Ray Tune runs, which trains as jobs/train.py does."""

import os
from collections.abc import Mapping
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from caption_ray.data.pipeline import Feed, Undivided
from caption_ray.logs import configure_logging, quieten_ray_workers
from caption_ray.train.resources import WorkerResources
from caption_ray.train.setup import FeatureStatistics
from caption_ray.train.stopping import STOP_VARIABLE
from caption_ray.train.trainer import Surroundings, TrainRequest, train
from caption_ray.tune.adapters import NUMBER
from caption_ray.tune.request import trial_request


def run_trial(
    config: dict[str, Any],
    base: TrainRequest,
    workers: WorkerResources,
    feeds: Mapping[str, Feed],
    statistics: FeatureStatistics | None,
) -> None:
    """Train with the settings of one trial, from its last checkpoint where it has one.

    base: the request of a run with the settings that all trials have.  feeds: read once for all of them; a trial finds
    the pictures in the object store of its node.
    """
    configure_logging()
    quieten_ray_workers()
    # A trial goes on from its last epoch in any case; and one that stopped in the midst of one would count as failed.
    os.environ.pop(STOP_VARIABLE, None)
    settings = dict(config)
    request = trial_request(base, settings.pop(NUMBER), settings)
    surroundings = Surroundings(
        workers=workers,
        feeds=feeds,
        statistics=statistics,
        split=Undivided(),
        callbacks=(TuneReportCallback(),),
        max_worker_failures=0,  # Tune starts a failed trial again, and counts how often
    )
    outcome = train(request, surroundings)
    if outcome.was_finished:  # the sweep was killed between the run's end and the record of it
        known = {name: value for name, value in outcome.metrics.items() if isinstance(value, int | float)}
        ray.tune.report({name: value for name, value in known.items() if name != "dev_beam_width"})

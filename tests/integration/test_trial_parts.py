"""A sweep's trial by itself: how often it is tried, and where its pictures lie."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
import ray.train
import torch
from ray.data.dataset import MaterializedDataset

from caption_ray.data.pipeline import smallest_object_store
from caption_ray.errors import RunError
from caption_ray.train.inputs import build_feeds, measure
from caption_ray.train.trainer import Surroundings, TrainRequest, inputs_of, train
from caption_ray.tune.packing import pack_trials
from caption_ray.tune.sweep import share_feeds

pytestmark = pytest.mark.usefixtures("local_ray")


class TooLarge:
    """Pictures for which the memory of whoever fetches them does not suffice; a line in a file for each attempt."""

    def __init__(self, attempts: Path) -> None:
        self.attempts = attempts

    def iter_batches(self, **_: object) -> Iterator[object]:
        with self.attempts.open("a") as stream:
            stream.write("tried\n")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class HandsOutTooMuch(ray.train.DataConfig):  # type: ignore[misc]
    def __init__(self, attempts: Path) -> None:
        super().__init__()
        self.attempts = attempts

    def configure(self, datasets: dict[str, object], world_size: int, *_: object, **__: object) -> list[object]:
        return [{name: TooLarge(self.attempts) for name in datasets} for _ in range(world_size)]


def test_trial_without_memory_is_not_tried_again_by_train(request_two: TrainRequest, tmp_path: Path) -> None:
    """Tune does that, and counts."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not know this file
    request = replace(request_two, storage=str(tmp_path), name="0001")
    inputs = inputs_of(request)
    surroundings = Surroundings(
        workers=pack_trials([{"CPU": 2.0}]).workers,
        feeds=build_feeds(inputs),
        statistics=measure(inputs),
        split=HandsOutTooMuch(tmp_path / "attempts"),
        max_worker_failures=0,
    )
    with pytest.raises(RunError, match="CUDA out of memory"):
        train(request, surroundings)
    assert (tmp_path / "attempts").read_text() == "tried\n"


def test_features_are_shared_where_both_splits_together_fit(
    request_two: TrainRequest, caplog: pytest.LogCaptureFixture
) -> None:
    feeds = build_feeds(inputs_of(request_two))
    room = smallest_object_store()
    # Each takes less than a run by itself would hold, or more: what counts is what they take together.
    for share, fits in ((0.3, True), (0.45, False)):
        asked = {split: replace(feed, num_bytes=int(share * room), resident=False) for split, feed in feeds.items()}
        found, are_shared = share_feeds(asked)
        assert are_shared is fits
        assert [feed.resident for feed in found.values()] == [fits, fits]
        assert [type(feed.dataset) is MaterializedDataset for feed in found.values()] == [fits, fits]
    assert "start Ray with a larger one (--object-store-memory), or cache fewer views (--num-views)" in caplog.text

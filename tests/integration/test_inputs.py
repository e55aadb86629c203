"""What a run is told of its data before anything starts."""

import logging
from dataclasses import replace

import pytest
from small import EXPERIMENT

from caption_ray.data.shards import DatasetManifest, load_manifest
from caption_ray.errors import DatasetError, UsageError
from caption_ray.train.inputs import check_selection, find_inputs
from caption_ray.train.trainer import TrainRequest, train
from caption_ray.tune.request import SweepRequest
from caption_ray.tune.space import space_around
from caption_ray.tune.sweep import sweep

pytestmark = pytest.mark.usefixtures("local_ray")


def with_counts(data: str, monkeypatch: pytest.MonkeyPatch, split: str, **counts: int) -> DatasetManifest:
    """Have the data set say that a split has other counts."""
    manifest = load_manifest(data)
    changed = manifest.splits | {split: manifest.splits[split].model_copy(update=counts)}
    manifest = manifest.model_copy(update={"splits": changed})
    monkeypatch.setattr("caption_ray.train.inputs.load_manifest", lambda _: manifest)
    return manifest


def test_split_without_pictures_says_how_to_name_some(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counts(data, monkeypatch, "dev", num_pictures=0)
    with pytest.raises(DatasetError, match=r"no picture in the dev split.*Flickr_8k\.devImages\.txt"):
        find_inputs(EXPERIMENT, EXPERIMENT, data, None)


def test_cider_of_a_single_dev_picture_chooses_nothing(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counts(data, monkeypatch, "dev", num_pictures=1)
    with pytest.raises(UsageError, match=r"a single dev picture is always 0.*--training\.select-by bleu_4"):
        check_selection(find_inputs(EXPERIMENT, EXPERIMENT, data, None))
    training = EXPERIMENT.training.model_copy(update={"select_by": "bleu_4"})
    check_selection(find_inputs(EXPERIMENT.model_copy(update={"training": training}), EXPERIMENT, data, None))


def test_fewer_captions_than_a_step_counts_on(
    data: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_inputs(EXPERIMENT, EXPERIMENT, data, None)
    assert "batch_size" not in caplog.text
    with_counts(data, monkeypatch, "train", num_pictures=10, num_captions=10)
    with caplog.at_level(logging.WARNING, "caption_ray"):
        find_inputs(EXPERIMENT, EXPERIMENT, data, None)
    # 20 captions, five a picture: four pictures a step, of one caption each.
    assert (
        "training.batch_size 20 will be about 4: a step takes 4 pictures, which have 1.0 captions each" in caplog.text
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"storage": "/proc/absent"}, "/proc/absent: cannot be written to"),
        ({"stage": "disk"}, "--stage disk: names no place on a node's disk"),
    ],
)
def test_a_run_without_a_place_is_refused_before_anything_starts(
    asked: dict[str, str], message: str, request_two: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_ray.train.trainer.connect", lambda: pytest.fail("Ray was started"))
    with pytest.raises(UsageError, match=message):
        train(replace(request_two, **asked))  # type: ignore[arg-type]


def test_a_sweep_that_cannot_be_written_is_refused_before_anything_starts(
    data: str, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_ray.tune.sweep.connect", lambda **_: pytest.fail("Ray was started"))
    request = SweepRequest(
        preset_name="quickstart",
        preset=EXPERIMENT,
        experiment=EXPERIMENT,
        space=space_around(EXPERIMENT),
        data=data,
        features=features,
        storage="/proc/absent",
        name="sweep",
        num_trials=1,
    )
    with pytest.raises(UsageError, match="/proc/absent/sweep: cannot be written to"):
        sweep(request)

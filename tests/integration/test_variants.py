"""Runs that differ from the usual one: cached views; fine-tuned stages on streamed crops."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from small import ENCODER, EXPERIMENT, make_cache

from caption_ray.bundle import load_bundle
from caption_ray.config import EncoderConfig, Experiment, TrainingConfig
from caption_ray.data.feature_manifest import load_feature_manifest
from caption_ray.data.pipeline import cached_feed
from caption_ray.data.shards import load_manifest
from caption_ray.evaluation.evaluate import evaluate
from caption_ray.evaluation.pictures import prepared_pictures
from caption_ray.model.encoder import build_encoder
from caption_ray.train.trainer import TrainRequest, train

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def views(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with a random crop of each training picture beside the picture itself."""
    return make_cache(data, str(tmp_path_factory.mktemp("cached") / "views"), num_views=2)


def vary(encoder: EncoderConfig = ENCODER, **training: object) -> Experiment:
    """Return the small experiment, an epoch long, with other settings of training and another encoder."""
    settings = {**EXPERIMENT.training.model_dump(), "epochs": 1, **training}
    return EXPERIMENT.model_copy(update={"encoder": encoder, "training": TrainingConfig.model_validate(settings)})


def start(request: TrainRequest, name: str, experiment: Experiment, **changes: object) -> TrainRequest:
    return replace(request, name=name, experiment=experiment, preset=experiment, **changes)  # type: ignore[arg-type]


def test_a_run_on_cached_views_ends_with_a_bundle(request_two: TrainRequest, views: str) -> None:
    outcome = train(start(request_two, "views", vary(augment=True), features=views))
    assert outcome.metrics["epoch"] == 1
    bundle = load_bundle(outcome.bundle)
    assert bundle.metrics == outcome.metrics
    assert 0 < float(str(bundle.metrics["bleu_1"])) <= 1


def test_only_training_on_augmented_pictures_reads_the_views(data: str, views: str) -> None:
    manifest = load_feature_manifest(views, load_manifest(data))
    plain = ["name", "captions", "picture"]
    for split, augment, columns in (
        ("train", True, [*plain, "view_1"]),
        ("train", False, plain),
        ("dev", False, plain),
        ("dev", True, plain),
    ):
        assert cached_feed(views, manifest, split, augment).dataset.columns() == columns
    for split, columns in (("train", [*plain, "view_1"]), ("dev", plain), ("test", plain)):
        for file in manifest.splits[split]:
            assert pq.read_schema(Path(views, file.name)).names == columns
    (file, *_) = manifest.splits["train"]
    table = pq.read_table(Path(views, file.name))
    assert table["view_1"].null_count == 0
    assert table["view_1"].to_pylist() != table["picture"].to_pylist()


def test_fine_tuning_on_streamed_crops_trains_the_last_stage_alone(
    request_two: TrainRequest, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, averaged weights; and the bundle's scores on dev are those that training saw.

    The encoder starts from a file named by a relative path, which workers, elsewhere, could not find by themselves.
    """
    with torch.random.fork_rng():
        torch.manual_seed(7)
        weights = torchvision.models.get_model(ENCODER.backbone, weights=None).state_dict()
    (tmp_path / "weights").mkdir()
    torch.save(weights, tmp_path / "weights" / "resnet18.pth")
    monkeypatch.chdir(tmp_path)
    encoder = ENCODER.model_copy(update={"finetune_stages": 1, "weights": "weights/resnet18.pth"})
    request = start(request_two, "finetuned", vary(encoder, augment=True, average_decay=0.9), features=None)
    outcome = train(request)
    bundle = load_bundle(outcome.bundle)
    assert bundle.model.encoder is not None
    initial, final = build_encoder(encoder).state_dict(), bundle.model.encoder.state_dict()
    assert torch.equal(initial["stages.0.0.weight"], weights["conv1.weight"])
    assert initial.keys() == final.keys()
    # ResNet18's last stage has five convolutions; batch norm, weights and statistics, stays as it was everywhere.
    assert {name for name in initial if not torch.equal(initial[name], final[name])} == {
        "stages.4.0.conv1.weight",
        "stages.4.0.conv2.weight",
        "stages.4.0.downsample.0.weight",
        "stages.4.1.conv1.weight",
        "stages.4.1.conv2.weight",
    }
    options = EXPERIMENT.decode.model_copy(update={"beam_width": 1})
    result = evaluate(bundle, prepared_pictures(data, "dev"), str(tmp_path / "scores"), options=options)
    assert result.scores.num_pictures == 41
    assert result.scores.bleu_1 == pytest.approx(outcome.metrics["bleu_1"], abs=0.02)
    assert train(request).was_finished

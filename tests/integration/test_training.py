"""The real path on a few drawn pictures: prepare, cache, Ray Train, bundle, evaluate; and what goes wrong there."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import ENCODER, EXPERIMENT, make_cache

from caption_ray.bundle import load_bundle
from caption_ray.config import CaptionRules, VocabularyConfig
from caption_ray.data.feature_manifest import load_feature_manifest
from caption_ray.data.prepare import prepare_dataset
from caption_ray.data.shards import load_manifest
from caption_ray.data.synthetic import write_synthetic_flickr8k
from caption_ray.errors import BundleError, FeatureCacheError, UsageError
from caption_ray.evaluation.evaluate import evaluate
from caption_ray.evaluation.pictures import prepared_pictures, source_pictures
from caption_ray.model.encoder import build_encoder
from caption_ray.train.state import CheckpointRecord
from caption_ray.train.trainer import TrainRequest, train

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_run_ends_with_a_bundle_that_captions(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, tmp_path: Path
) -> None:
    assert undisturbed["epoch"] in (1, 2, 3)
    bundle = load_bundle(f"{request_two.run_folder}/bundle")
    assert bundle.config.encoder == ENCODER
    assert list(Path(request_two.run_folder, "tensorboard").glob("events.out.tfevents*"))
    result = evaluate(bundle, prepared_pictures(data, "test"), str(tmp_path))
    assert result.scores.num_pictures == 41
    predictions = json.loads((tmp_path / "predictions_test.json").read_text())
    assert len(predictions) == 41
    assert all(caption.split() for caption in predictions.values())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bleu_4"] == result.scores.bleu_4
    assert "data:image/jpeg;base64" in (tmp_path / "report.html").read_text()


def test_of_equal_epochs_the_first_is_the_best_in_the_log_and_in_the_bundle(
    request_two: TrainRequest,
) -> None:
    """With steps too small to change a weight all epochs score alike."""
    optimizer = EXPERIMENT.optimizer.model_copy(update={"learning_rate": 1e-20})
    training = EXPERIMENT.training.model_copy(update={"epochs": 2})
    experiment = EXPERIMENT.model_copy(update={"optimizer": optimizer, "training": training})
    outcome = train(replace(request_two, experiment=experiment, name="equal", num_workers=1))
    first, second = (
        CheckpointRecord.model_validate_json(Path(request_two.storage, "equal", name, "progress.json").read_bytes())
        for name in ("epoch_0001", "epoch_0002")
    )
    assert first.metrics["cider"] == second.metrics["cider"]
    assert second.progress.best_epoch == 1
    assert outcome.metrics["epoch"] == 1
    assert "rank" not in outcome.metrics


def test_dev_scores_of_training_are_those_of_evaluation(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, tmp_path: Path
) -> None:
    """Two workers decoded 41 dev pictures from half-precision features; here one actor does, from the pictures."""
    options = EXPERIMENT.decode.model_copy(update={"beam_width": 1})
    bundle = load_bundle(f"{request_two.run_folder}/bundle")
    result = evaluate(bundle, prepared_pictures(data, "dev"), str(tmp_path), options=options)
    assert result.scores.num_pictures == 41
    assert result.scores.bleu_1 == pytest.approx(undisturbed["bleu_1"], abs=0.02)
    assert result.scores.cider == pytest.approx(undisturbed["cider"], abs=0.1)


def test_a_folder_that_was_never_prepared_is_scored_alike(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, source: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(f"{request_two.run_folder}/bundle")
    prepared = evaluate(bundle, prepared_pictures(data, "test"), str(tmp_path / "a"))
    other = tmp_path / "b" / "predictions_dev.json"
    other.parent.mkdir()
    other.write_text('{"of": "another split"}')
    unprepared = evaluate(bundle, source_pictures(str(source), "test"), str(other.parent), overwrite=True)
    assert unprepared.scores == prepared.scores
    left = {path.name for path in other.parent.iterdir()}
    assert left == {"metrics.json", "report.html", "predictions_test.json"}, "all are of one evaluation"


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_spoilt_bundle_is_not_taken_for_pictures_that_cannot_be_read(
    skip_bad: bool, tiny_bundle: Path, data: str, tmp_path: Path
) -> None:
    bundle = load_bundle(str(tiny_bundle))
    for weight in bundle.model.decoder.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(BundleError, match="the weights are spoilt"):
        evaluate(bundle, prepared_pictures(data, "dev"), str(tmp_path), skip_bad=skip_bad)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_streamed_pictures_give_the_loss_of_cached_features(request_two: TrainRequest) -> None:
    """One worker, so that both feeds have the same order; half precision is the only difference."""
    training = EXPERIMENT.training.model_copy(update={"epochs": 1})
    request = replace(request_two, experiment=EXPERIMENT.model_copy(update={"training": training}), num_workers=1)
    cached = train(replace(request, name="cached")).metrics
    streamed = train(replace(request, name="streamed", features=None)).metrics
    assert streamed["train_loss"] == pytest.approx(cached["train_loss"], rel=2e-3)
    assert streamed["dev_loss"] == pytest.approx(cached["dev_loss"], rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 3}, "--num-workers 3: each takes a CPU, and the cluster has 2 CPU"),
        ({"device": "gpu"}, "the cluster has 2 CPU.* 0 GPU"),
        ({"cpus_per_worker": 4.0}, "--num-workers 2 with 4 CPU"),
    ],
)
def test_asking_for_more_than_the_cluster_has_is_an_error_at_once(
    request_two: TrainRequest, changes: dict[str, object], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=message):
        train(replace(request_two, name="greedy", **changes))  # type: ignore[arg-type]
    assert time.monotonic() - started < 20


def test_a_cache_of_other_pictures_is_refused(request_two: TrainRequest, tmp_path: Path, local_ray: None) -> None:
    write_synthetic_flickr8k(tmp_path / "other", 30, seed=4)
    other = str(tmp_path / "data")
    prepare_dataset(
        str(tmp_path / "other"),
        other,
        skip_bad=False,
        overwrite=False,
        rules=CaptionRules(),
        vocabulary=VocabularyConfig(min_count=1),
    )
    with pytest.raises(FeatureCacheError, match="foreign or stale"):
        train(replace(request_two, name="foreign", data=other))


def test_features_of_another_encoder_are_refused(request_two: TrainRequest) -> None:
    asked = EXPERIMENT.model_copy(update={"encoder": ENCODER.model_copy(update={"backbone": "resnet34"})})
    with pytest.raises(UsageError, match=r"encoder\.backbone: 'resnet34'"):
        train(replace(request_two, name="other", experiment=asked))


def test_a_complete_cache_is_left_alone_and_views_are_kept(data: str, features: str, tmp_path: Path) -> None:
    before = (Path(features) / "features.json").stat().st_mtime_ns
    make_cache(data, features)
    assert (Path(features) / "features.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="--overwrite"):
        make_cache(data, features, num_views=2)
    with pytest.raises(UsageError, match="precision; choose another --output"):
        make_cache(data, features, precision="bf16")


def test_a_cache_in_bf16_says_so_and_comes_near(data: str, features: str, tmp_path: Path) -> None:
    rounded = make_cache(data, str(tmp_path / "bf16"), precision="bf16")
    manifests = [load_feature_manifest(folder, load_manifest(data)) for folder in (features, rounded)]
    assert [manifest.precision for manifest in manifests] == ["fp32", "bf16"]
    grids = []
    for folder, manifest in zip((features, rounded), manifests, strict=True):
        (file,) = manifest.splits["dev"]
        table = pq.read_table(Path(folder, file.name))
        grids.append(manifest.picture_format.read(table["picture"].combine_chunks()).astype("f4"))
    error = np.linalg.norm(grids[1] - grids[0]) / np.linalg.norm(grids[0])
    assert 1e-5 < error < 0.02


def test_features_that_half_precision_cannot_hold_are_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a deep network with random weights: infinite ones would end training, with the wrong advice."""
    encoder = build_encoder(ENCODER)
    for weight in encoder.parameters():
        weight.data.mul_(10)
    monkeypatch.setattr("small.build_encoder", lambda _: encoder)
    with pytest.raises(FeatureCacheError, match=r"\.jpg: resnet18's features are beyond 65,504.*--encoder\.weights"):
        make_cache(data, str(tmp_path / "beyond"))
    assert not (tmp_path / "beyond").exists()


def test_a_cache_in_fp16_needs_a_gpu(data: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--precision: fp16 is for GPUs"):
        make_cache(data, str(tmp_path / "fp16"), precision="fp16")
    assert not (tmp_path / "fp16").exists()

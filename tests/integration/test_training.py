"""The real path on a few drawn pictures: prepare, cache, Ray Train, bundle, evaluate; and what goes wrong there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from caption_ray.bundle import load_bundle
from caption_ray.config import (
    CaptionRules,
    DecodeOptions,
    EncoderConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    VocabularyConfig,
)
from caption_ray.data.feature_cache import cache_features
from caption_ray.data.prepare import prepare_dataset
from caption_ray.data.synthetic import write_synthetic_flickr8k
from caption_ray.errors import FeatureCacheError, RunError, UsageError
from caption_ray.evaluation.evaluate import evaluate
from caption_ray.evaluation.pictures import prepared_pictures, source_pictures
from caption_ray.model.encoder import build_encoder, weights_digest
from caption_ray.train.trainer import TrainRequest, train

pytestmark = pytest.mark.usefixtures("local_ray")

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train writes it when a checkpoint counts: after the first epoch, the first time."""

ENCODER = EncoderConfig(backbone="resnet18", weights="none", image_size=64)
EXPERIMENT = Experiment(
    encoder=ENCODER,
    model=ModelConfig(embedding_size=16, hidden_size=24, attention_size=8, dropout=0.3, standardise_features=True),
    optimizer=OptimizerConfig(learning_rate=5e-3),
    training=TrainingConfig(epochs=3, batch_size=20, average_decay=0.9, shuffle_buffer=64, patience=0),
    decode=DecodeOptions(beam_width=2, max_words=12),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """410 drawn pictures: 328 to train on, 41 each for dev and test, an odd number for two workers."""
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic_flickr8k(folder, 410, seed=3)
    return folder


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    folder = str(tmp_path_factory.mktemp("prepared") / "data")
    prepare_dataset(
        str(source),
        folder,
        skip_bad=False,
        overwrite=False,
        rules=CaptionRules(),
        vocabulary=VocabularyConfig(min_count=1),
    )
    return folder


def make_cache(data: str, output: str, config: EncoderConfig = ENCODER, num_views: int = 1) -> str:
    encoder = build_encoder(config)
    cache_features(
        data,
        output,
        config,
        encoder,
        weights=encoder.state_dict(),
        weights_sha256=weights_digest(encoder),
        num_views=num_views,
    )
    return output


@pytest.fixture(scope="module")
def features(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_cache(data, str(tmp_path_factory.mktemp("cached") / "features"))


@pytest.fixture(scope="module")
def request_two(data: str, features: str, tmp_path_factory: pytest.TempPathFactory) -> TrainRequest:
    return TrainRequest(
        experiment=EXPERIMENT,
        preset=EXPERIMENT,
        data=data,
        features=features,
        storage=str(tmp_path_factory.mktemp("runs")),
        name="undisturbed",
        num_workers=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def undisturbed(request_two: TrainRequest) -> dict[str, object]:
    outcome = train(request_two)
    assert not outcome.was_finished
    return outcome.metrics


def numbers(metrics: dict[str, object]) -> dict[str, object]:
    """Return what must not depend on the clock."""
    return {name: value for name, value in metrics.items() if "per_s" not in name and "seconds" not in name}


def test_a_run_ends_with_a_bundle_that_captions(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, tmp_path: Path
) -> None:
    assert undisturbed["epoch"] in (1, 2, 3)
    bundle = load_bundle(f"{request_two.run_folder}/bundle")
    assert bundle.config.encoder == ENCODER
    assert list(Path(request_two.run_folder, "tensorboard").glob("events.out.tfevents*"))
    result = evaluate(bundle.location, prepared_pictures(data, "test"), str(tmp_path))
    assert result.scores.num_pictures == 41
    predictions = json.loads((tmp_path / "predictions_test.json").read_text())
    assert len(predictions) == 41
    assert all(caption.split() for caption in predictions.values())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bleu_4"] == result.scores.bleu_4
    assert "data:image/jpeg;base64" in (tmp_path / "report.html").read_text()


def test_dev_scores_of_training_are_those_of_evaluation(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, tmp_path: Path
) -> None:
    """Two workers decoded 41 dev pictures from half-precision features; here one actor does, from the pictures."""
    options = EXPERIMENT.decode.model_copy(update={"beam_width": 1})
    bundle = f"{request_two.run_folder}/bundle"
    result = evaluate(bundle, prepared_pictures(data, "dev"), str(tmp_path), options=options)
    assert result.scores.num_pictures == 41
    assert result.scores.bleu_1 == pytest.approx(undisturbed["bleu_1"], abs=0.02)
    assert result.scores.cider == pytest.approx(undisturbed["cider"], abs=0.1)


def test_a_folder_that_was_never_prepared_is_scored_alike(
    request_two: TrainRequest, undisturbed: dict[str, object], data: str, source: Path, tmp_path: Path
) -> None:
    bundle = f"{request_two.run_folder}/bundle"
    prepared = evaluate(bundle, prepared_pictures(data, "test"), str(tmp_path / "a"))
    unprepared = evaluate(bundle, source_pictures(str(source), "test"), str(tmp_path / "b"))
    assert unprepared.scores == prepared.scores


def test_the_same_command_again_says_that_the_run_is_finished(
    request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    again = train(request_two)
    assert again.was_finished
    assert numbers(again.metrics) == numbers(undisturbed)


def test_a_killed_worker_costs_an_epoch_and_changes_nothing(
    request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    request = replace(request_two, name="killed")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(Path(request.run_folder), killed))
    killer.start()
    outcome = train(request)
    killer.join()
    assert len(killed) == 1
    assert numbers(outcome.metrics) == numbers(undisturbed)


def kill_a_worker(run_folder: Path, killed: list[int]) -> None:
    """Kill one of this process's training workers by SIGKILL once the first epoch's checkpoint is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if (run_folder / SNAPSHOT).exists():
            time.sleep(0.5)
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrain"):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.05)


def test_a_killed_run_goes_on_where_it_stopped(
    request_two: TrainRequest, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """The whole job dies by SIGKILL in its second epoch; the same command goes on and reaches the same result."""
    settings = tmp_path / "request.json"
    settings.write_text(
        json.dumps(
            {
                "experiment": EXPERIMENT.model_dump(mode="json"),
                "data": request_two.data,
                "features": request_two.features,
                "storage": str(tmp_path),
            }
        )
    )
    command = [sys.executable, str(Path(__file__).with_name("run_training.py")), str(settings)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(tmp_path / "job" / SNAPSHOT, first)
    time.sleep(0.5)
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    for process in family:
        if process.is_running():
            process.kill()
    first.communicate()
    assert not (tmp_path / "job" / "bundle").exists()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    assert "going on with run job" in second.stderr
    assert "going on after epoch" in second.stderr
    assert numbers(json.loads(second.stdout.splitlines()[-1])) == numbers(undisturbed)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.05)


def test_streamed_pictures_give_the_loss_of_cached_features(request_two: TrainRequest) -> None:
    """One worker, so that both feeds have the same order; half precision is the only difference."""
    training = EXPERIMENT.training.model_copy(update={"epochs": 1})
    request = replace(request_two, experiment=EXPERIMENT.model_copy(update={"training": training}), num_workers=1)
    cached = train(replace(request, name="cached")).metrics
    streamed = train(replace(request, name="streamed", features=None)).metrics
    assert streamed["train_loss"] == pytest.approx(cached["train_loss"], rel=2e-3)
    assert streamed["dev_loss"] == pytest.approx(cached["dev_loss"], rel=2e-3)


def test_other_settings_under_the_same_name_are_refused(
    request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    changed = EXPERIMENT.model_copy(update={"model": EXPERIMENT.model.model_copy(update={"hidden_size": 25})})
    with pytest.raises(RunError, match=r"model\.hidden_size: 24 then, 25 now"):
        train(replace(request_two, experiment=changed))


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

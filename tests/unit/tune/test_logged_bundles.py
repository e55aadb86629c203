"""The log names a bundle where it stays: a run's, and that of a sweep's best, which is written beside an older one."""

import hashlib
from pathlib import Path

import pytest
from tiny import FEATURES, WORDS, build_stepper
from torch import nn
from trials import trial

from caption_ray.data.shards import DatasetManifest
from caption_ray.errors import RunError
from caption_ray.model.encoder import Encoder
from caption_ray.text.vocabulary import SPECIAL_WORDS, Vocabulary
from caption_ray.train import trainer
from caption_ray.train.encoder_source import EncoderSource
from caption_ray.train.inputs import RunInputs
from caption_ray.train.state import Progress, save_state
from caption_ray.train.steps import Stepper
from caption_ray.train.trainer import TrainRequest
from caption_ray.tune import outcome
from caption_ray.tune.outcome import finish
from caption_ray.tune.records import SweepRecord
from caption_ray.tune.request import SweepRequest
from caption_ray.tune.space import settings_of, space_around

NUM_EPOCHS = 9


@pytest.fixture
def stepper() -> Stepper:
    return build_stepper(epochs=NUM_EPOCHS, select_by="cider")


@pytest.fixture
def inputs(stepper: Stepper, tmp_path: Path) -> RunInputs:
    """What a run trains on, as far as its bundle needs it: a vocabulary, and an encoder without weights."""
    vocabulary = Vocabulary((*SPECIAL_WORDS, *(f"word{place}" for place in range(WORDS - len(SPECIAL_WORDS)))))
    data = tmp_path / "data"
    data.mkdir()
    (data / "vocabulary.json").write_text(vocabulary.to_json())
    manifest = DatasetManifest(
        layout="flickr8k",
        splits={},
        num_pictures=0,
        num_captions=0,
        vocabulary_size=WORDS,
        num_left_out=0,
        vocabulary_sha256=hashlib.sha256((data / "vocabulary.json").read_bytes()).hexdigest(),
        digest="ab",
    )
    source = EncoderSource(
        config=stepper.settings.encoder,
        encoder=Encoder(nn.Sequential(nn.Identity()), FEATURES, image_size=64, finetune_stages=0),
        weights_sha256="cd",
        features=None,
    )
    return RunInputs(data=str(data), features=None, manifest=manifest, source=source, experiment=stepper.settings)


def save_last_epoch(run: Path, stepper: Stepper) -> None:
    folder = run / "checkpoint"
    folder.mkdir(parents=True)
    save_state(folder, stepper, Progress(epochs_done=NUM_EPOCHS, best_epoch=NUM_EPOCHS), {"cider": 0.4})


def logged_bundles(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("wrote ")]


def sweep_of(stepper: Stepper, data: str, tmp_path: Path) -> tuple[SweepRequest, SweepRecord]:
    """A sweep of one trial, and its record."""
    experiment = stepper.settings
    request = SweepRequest(
        preset_name="quickstart",
        preset=experiment,
        experiment=experiment,
        space=space_around(experiment),
        data=data,
        features=str(tmp_path / "features"),
        storage=str(tmp_path / "runs"),
        name="sweep",
        num_trials=1,
    )
    record = SweepRecord(
        preset="quickstart",
        experiment=experiment,
        space=request.space,
        search="optuna",
        stopping=request.stopping,
        seed=0,
        data_digest="ab",
        vocabulary_sha256="cd",
        features_key="ef",
    )
    return request, record


def test_the_best_of_a_sweep_is_logged_where_it_stays(
    stepper: Stepper,
    inputs: RunInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "caption_ray")
    experiment = stepper.settings
    request, record = sweep_of(stepper, inputs.data, tmp_path)
    folder = tmp_path / "runs" / "sweep"
    save_last_epoch(folder / "trials" / "0001", stepper)
    best = trial(1, *(epoch / 20 for epoch in range(1, NUM_EPOCHS + 1)))
    monkeypatch.setattr(outcome, "inputs_of", lambda run: inputs)
    finished = finish(request, record, {1: best.model_copy(update={"settings": settings_of(experiment)})})
    assert logged_bundles(caplog) == [f"wrote {finished.bundle} (epoch {NUM_EPOCHS})"]
    assert finished.bundle == str(folder / "best")
    assert (folder / "best" / "manifest.json").exists()
    assert not (folder / "best.new").exists()


def test_sweep_without_a_trial_that_ended_well_has_a_page_and_a_remedy(stepper: Stepper, tmp_path: Path) -> None:
    request, record = sweep_of(stepper, "data", tmp_path)
    failed = trial(1, 0.5, 0.6).model_copy(
        update={"status": "failed", "error": "CUDA out of memory", "settings": settings_of(stepper.settings)}
    )
    with pytest.raises(RunError, match="no trial has ended well; --retry-failed tries them again") as caught:
        finish(request, record, {1: failed})
    assert "trial 1: CUDA out of memory" in str(caught.value)
    assert "CUDA out of memory" in (tmp_path / "runs" / "sweep" / "report.html").read_text()


def test_the_bundle_of_a_run_is_logged(
    stepper: Stepper,
    inputs: RunInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "caption_ray")
    monkeypatch.setattr(trainer, "_fit", lambda *_: save_last_epoch(tmp_path / "runs" / "run", stepper))
    request = TrainRequest(
        experiment=stepper.settings,
        preset=stepper.settings,
        data=inputs.data,
        features=None,
        storage=str(tmp_path / "runs"),
        name="run",
    )
    done = trainer._run(request, inputs, None)  # type: ignore[arg-type]
    assert done.bundle == str(tmp_path / "runs" / "run" / "bundle")
    assert logged_bundles(caplog) == [f"wrote {done.bundle} (epoch {NUM_EPOCHS})"]
    assert (Path(done.bundle) / "manifest.json").exists()

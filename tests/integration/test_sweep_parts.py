"""What Ray Tune is given to ask: who goes on and what is tried next, before and after a sweep was cut off."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from another_driver import at_work
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

import caption_ray
from caption_ray.config import Experiment
from caption_ray.errors import DatasetError, RunError, UsageError
from caption_ray.lock import LOCK_NAME
from caption_ray.presets import flickr8k
from caption_ray.train.state import PROGRESS_NAME, STATE_NAME, CheckpointRecord, Progress
from caption_ray.train.stopping import StopWatch
from caption_ray.tune import sweep as sweep_module
from caption_ray.tune.adapters import NUMBER, SweepSearcher, SweepWatch, build_scheduler
from caption_ray.tune.records import Status, StoppingConfig, SweepRecord, TrialRecord, read_trials
from caption_ray.tune.search import TrialSearch
from caption_ray.tune.space import SearchSpace
from caption_ray.tune.sweep import sweep
from jobs import tune

SPACE = SearchSpace()
STOPPING = StoppingConfig(grace_epochs=2, reduction=2)


def record(number: int, *scores: float, status: Status = "finished") -> TrialRecord:
    settings = {
        **SPACE.fixed,
        "optimizer.learning_rate": 1e-3,
        "model.dropout": 0.2 + 0.01 * number,
        "training.label_smoothing": 0,
    }
    epochs = tuple({"epoch": float(epoch), "cider": score} for epoch, score in enumerate(scores, 1))
    return TrialRecord(number=number, settings=settings, status=status, epochs=epochs)


def decisions(scheduler: TrialScheduler, number: int, *scores: float, first_epoch: int = 1) -> list[str]:
    """Return what is decided after each epoch of a trial."""
    trial = SimpleNamespace(trial_id="Tune's own", config={NUMBER: number})
    scheduler.on_trial_add(None, trial)
    return [
        scheduler.on_trial_result(None, trial, {"epoch": epoch, "cider": score})
        for epoch, score in enumerate(scores, first_epoch)
    ]


def test_trial_below_the_better_half_at_a_rung_is_stopped_there() -> None:
    known = [record(1, 0.1, 0.3, 0.4, 0.5), record(2, 0.1, 0.2, status="stopped")]
    scheduler = build_scheduler(STOPPING, "cider", 8, known)
    # At the second epoch 0.3 and 0.2 are known, of which the better half begins at 0.25.
    assert decisions(scheduler, 3, 0.05, 0.24) == ["CONTINUE", "STOP"]
    # Then 0.3, 0.24 and 0.2: from 0.24 on; and at the fourth 0.5 alone, which 0.45 does not reach.
    assert decisions(scheduler, 4, 0.05, 0.26, 0.35, 0.45) == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def test_rungs_without_records_stop_nobody() -> None:
    """What Ray's own restoring comes to: the first trial after it goes on, however bad."""
    assert decisions(build_scheduler(STOPPING, "cider", 8, []), 1, 0.0, 0.0, 0.0, 0.0) == ["CONTINUE"] * 4


def test_last_epoch_stops_nobody_by_being_the_last() -> None:
    """Else a trial would be ended before it has written its bundle."""
    known = [record(1, 0.1, 0.2, 0.9, 0.9), record(2, 0.1, 0.2, 0.8, 0.8)]
    assert decisions(build_scheduler(STOPPING, "cider", 4, known), 3, 0.1, 0.2, 0.3, 0.4) == ["CONTINUE"] * 4
    assert decisions(build_scheduler(STOPPING, "cider", 5, known), 3, 0.1, 0.2, 0.3, 0.4)[-1] == "STOP"


def test_trial_that_was_cut_off_keeps_its_place_at_the_rungs() -> None:
    """The second epoch's rung has 0.5 and 0.3; the third trial's own 0.4 counts there, not its 0.1 of the third."""
    known = [record(1, 0.1, 0.5), record(2, 0.1, 0.3), record(3, 0.1, 0.4, status="running")]
    scheduler = build_scheduler(STOPPING, "cider", 8, known)
    assert decisions(scheduler, 3, 0.1, first_epoch=3) == ["CONTINUE"]
    # The better half of 0.5, 0.4 and 0.3 begins at 0.4.
    assert decisions(scheduler, 4, 0.1, 0.39) == ["CONTINUE", "STOP"]


@pytest.mark.parametrize("stopping", [StoppingConfig(early=False), StoppingConfig(grace_epochs=8)])
def test_nobody_is_stopped_where_that_is_asked_for(stopping: StoppingConfig) -> None:
    assert type(build_scheduler(stopping, "cider", 8, [record(1, 0.9)])) is FIFOScheduler


def test_trials_that_were_cut_off_come_first_and_keep_number_and_settings() -> None:
    records = {1: record(1, 0.1), 2: record(2, 0.2, status="running"), 3: record(3), 4: record(4, status="running")}
    searcher = SweepSearcher(TrialSearch(SPACE, "random", "cider", seed=0), records, preset=None)
    found = [searcher.suggest(trial_id) for trial_id in "abcd"]
    assert [one.pop(NUMBER) for one in found] == [2, 4, 5, 6]
    assert found[:2] == [records[2].settings, records[4].settings]
    assert found[2] == TrialSearch(SPACE, "random", "cider", seed=0).suggest(5)


def test_preset_is_the_first_trial() -> None:
    preset = record(1).settings
    searcher = SweepSearcher(TrialSearch(SPACE, "optuna", "cider", seed=0), {}, preset)
    assert searcher.suggest("a") == {NUMBER: 1, **preset}
    assert searcher.suggest("b") != {NUMBER: 2, **preset}


class FakeTrial(SimpleNamespace):
    """What the watch asks of one of Tune's trials."""

    def __init__(self, settings: dict[str, float]) -> None:
        super().__init__(config={NUMBER: 1, **settings}, num_failures=0, max_failures=9)

    def get_error(self) -> str:
        return "RuntimeError: no memory"


def watch(folder: Path, records: dict[int, TrialRecord], max_retries: int = 1) -> SweepWatch:
    sweep = SweepRecord(
        preset="flickr8k",
        experiment=Experiment(),
        space=SPACE,
        search="random",
        stopping=STOPPING,
        seed=0,
        data_digest="",
        vocabulary_sha256="",
        features_key="",
    )
    search = TrialSearch(SPACE, "random", "cider", seed=0)
    return SweepWatch(
        search,
        sweep,
        records,
        name="s",
        folder=str(folder),
        num_trials=1,
        max_retries=max_retries,
        stop_watch=StopWatch(()),
    )


def test_starts_of_earlier_lives_count(tmp_path: Path) -> None:
    """Of two starts one is used up, by a sweep that was killed: none is left for a failure."""
    earlier = record(1, 0.1, status="running").model_copy(update={"num_starts": 1})
    trial = FakeTrial(earlier.settings)
    watching = watch(tmp_path, {1: earlier})
    watching.on_trial_start(0, [trial], trial)
    assert (trial.max_failures, read_trials(str(tmp_path))[1].num_starts) == (0, 2)
    assert read_trials(str(tmp_path))[1].caption_ray_version == caption_ray.__version__
    watching.on_trial_result(0, [trial], trial, {"epoch": 2, "cider": 0.2})
    assert read_trials(str(tmp_path))[1].num_starts == 0


def save_epoch(run: Path, epoch: int, score: float) -> dict[str, float]:
    """Write a checkpoint's record, and return what the epoch would have been reported with."""
    metrics = {"epoch": float(epoch), "cider": score, "train_loss": 2.5, "train_seconds": 7.0}
    progress = Progress(epochs_done=epoch, best_score=score, best_epoch=epoch)
    folder = run / f"epoch_{epoch:04d}"
    folder.mkdir(parents=True)
    (folder / STATE_NAME).write_bytes(b"state")
    kept = CheckpointRecord(progress=progress, metrics=metrics, state_bytes=5)
    (folder / PROGRESS_NAME).write_text(kept.model_dump_json())
    return metrics


def test_epoch_that_was_saved_and_never_reported_is_put_back_when_the_trial_goes_on(tmp_path: Path) -> None:
    earlier = record(1, 0.1, status="running").model_copy(update={"num_starts": 1})
    save_epoch(tmp_path / "trials" / "0001", 1, 0.9)  # known otherwise: what was reported stays
    saved = save_epoch(tmp_path / "trials" / "0001", 2, 0.2)
    trial = FakeTrial(earlier.settings)
    watching = watch(tmp_path, {1: earlier})
    watching.on_trial_start(0, [trial], trial)
    # The scheduler decides of it with the next report; what is in a record counts as decided.
    assert read_trials(str(tmp_path))[1].epochs == earlier.epochs
    result = {"epoch": 3, "cider": 0.15, "done": False, "training_iteration": 1}
    watching.on_trial_result(0, [trial], trial, result)
    assert result["timesteps_total"] == 3  # TensorBoard's step, of Tune's logger, goes on where the trial does
    found = read_trials(str(tmp_path))[1]
    assert found.scores("cider") == {1: 0.1, 2: 0.2, 3: 0.15}
    assert found.epochs[1] == saved


def test_last_epoch_that_was_saved_and_never_reported_counts(tmp_path: Path) -> None:
    """A run that has all its epochs reports nothing when it is started again."""
    earlier = record(1, 0.1, 0.2, status="running")
    run = tmp_path / "trials" / "0001"
    saved = save_epoch(run, 3, 0.9)
    (run / "bundle").mkdir()
    (run / "bundle" / "manifest.json").write_text("{}")
    trial = FakeTrial(earlier.settings)
    watching = watch(tmp_path, {1: earlier})
    watching.on_trial_start(0, [trial], trial)
    watching.on_trial_complete(0, [trial], trial)
    found = read_trials(str(tmp_path))[1]
    assert found.status == "finished"
    assert found.epochs == (*earlier.epochs, saved)


def test_orderly_end_of_the_sweep_is_not_held_against_its_trials(tmp_path: Path) -> None:
    waiting = record(2, status="running").model_copy(update={"number": 2, "num_starts": 1})
    trial = FakeTrial(waiting.settings)
    watching = watch(tmp_path, {2: waiting})
    watching.on_trial_start(0, [trial], trial)
    assert trial.max_failures == 1
    trial.num_failures = 1
    watching.on_trial_start(0, [trial], trial)
    started = read_trials(str(tmp_path))[1]
    assert (started.num_starts, started.num_retries, trial.max_failures) == (2, 1, 1)
    watching.on_experiment_end([trial])
    assert read_trials(str(tmp_path))[1].num_starts == 1  # the failure is


def test_epoch_and_the_decision_to_stop_after_it_are_one_record(tmp_path: Path) -> None:
    trial = FakeTrial(record(1).settings)
    watching = watch(tmp_path, {})
    watching.on_trial_start(0, [trial], trial)
    watching.on_trial_result(0, [trial], trial, {"epoch": 1, "cider": 0.2, "done": False})
    assert read_trials(str(tmp_path))[1].status == "running"
    watching.on_trial_result(0, [trial], trial, {"epoch": 2, "cider": 0.1, "done": True})
    assert read_trials(str(tmp_path))[1].status == "stopped"


def test_code_that_a_trial_was_started_with_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_ray, "__file__", str(tmp_path / "__init__.py"))
    records: dict[int, TrialRecord] = {}
    for commit in ("one", "two", "two+", "two+"):
        monkeypatch.setenv("CAPTION_RAY_COMMIT", commit)
        trial = FakeTrial(record(1).settings)
        watch(tmp_path, records, max_retries=9).on_trial_start(0, [trial], trial)
        records = read_trials(str(tmp_path))
    assert records[1].commits == ("one", "two", "two+")


def test_sweep_that_is_refused_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where the other one has recorded nothing that could be seen yet."""
    inputs = SimpleNamespace(
        source=SimpleNamespace(features=SimpleNamespace(key="ef")),
        manifest=SimpleNamespace(digest="ab", vocabulary_sha256="cd"),
        experiment=flickr8k(),
    )
    monkeypatch.setattr(sweep_module, "inputs_of", lambda _: inputs)
    monkeypatch.setattr(sweep_module, "check_selection", lambda _: None)
    line = ["flickr8k", "--data", "d", "--features", "f", "--storage", str(tmp_path), "--name", "n"]
    request = tune.to_request(tyro.cli(tune.command_line(), args=line))
    lock = tmp_path / "n" / LOCK_NAME
    with at_work(lock), pytest.raises(RunError, match="process 7 on elsewhere works on this sweep"):
        sweep(request)
    assert [path.name for path in lock.parent.iterdir()] == [LOCK_NAME]


def test_relative_storage_is_refused_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["flickr8k", "--data", "absent", "--features", "f", "--storage", "runs", "--name", "n"]
    request = tune.to_request(tyro.cli(tune.command_line(), args=line))
    with pytest.raises(DatasetError):  # as anywhere else
        sweep(request)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="--storage runs: in a Ray job, name an absolute folder"):
        sweep(request)
    with pytest.raises(DatasetError):
        sweep(replace(request, storage="/runs"))

"""What Ray Tune is given to ask: who goes on and what is tried next, before and after a sweep was cut off."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from caption_ray.tune.adapters import NUMBER, SweepSearcher, build_scheduler
from caption_ray.tune.records import Status, StoppingConfig, TrialRecord
from caption_ray.tune.search import TrialSearch
from caption_ray.tune.space import SearchSpace

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


def decisions(scheduler: TrialScheduler, *scores: float) -> list[str]:
    """Return what is decided after each epoch of a new trial."""
    trial = SimpleNamespace(trial_id=str(scores))
    scheduler.on_trial_add(None, trial)
    return [
        scheduler.on_trial_result(None, trial, {"epoch": epoch, "cider": score})
        for epoch, score in enumerate(scores, 1)
    ]


def test_trial_below_the_better_half_at_a_rung_is_stopped_there() -> None:
    known = [record(1, 0.1, 0.3, 0.4, 0.5), record(2, 0.1, 0.2, status="stopped")]
    scheduler = build_scheduler(STOPPING, "cider", 8, known)
    # At the second epoch 0.3 and 0.2 are known, of which the better half begins at 0.25.
    assert decisions(scheduler, 0.05, 0.24) == ["CONTINUE", "STOP"]
    # Then 0.3, 0.24 and 0.2: from 0.24 on; and at the fourth 0.5 alone, which 0.45 does not reach.
    assert decisions(scheduler, 0.05, 0.26, 0.35, 0.45) == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def test_rungs_without_records_stop_nobody() -> None:
    """What Ray's own restoring comes to: the first trial after it goes on, however bad."""
    assert decisions(build_scheduler(STOPPING, "cider", 8, []), 0.0, 0.0, 0.0, 0.0) == ["CONTINUE"] * 4


def test_last_epoch_stops_nobody_by_being_the_last() -> None:
    """Else a trial would be ended before it has written its bundle."""
    assert decisions(build_scheduler(STOPPING, "cider", 4, []), 0.1, 0.2, 0.3, 0.4) == ["CONTINUE"] * 4


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

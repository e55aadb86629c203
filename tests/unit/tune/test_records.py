import math
from pathlib import Path

import pytest
from trials import TRIALS, trial

from caption_ray.errors import RunError
from caption_ray.tune.records import fail_hopeless, read_trials, unfail, write_trial


def test_records_come_back_by_number(tmp_path: Path) -> None:
    for record in reversed(TRIALS):
        write_trial(str(tmp_path), record)
    assert list(read_trials(str(tmp_path)).values()) == list(TRIALS)
    (tmp_path / "trials" / "0009").mkdir()
    assert list(read_trials(str(tmp_path))) == [1, 2, 3, 4, 5, 6]


def test_unreadable_record_is_no_reason_to_give_its_number_away(tmp_path: Path) -> None:
    write_trial(str(tmp_path), TRIALS[2])
    file = tmp_path / "trials" / "0003" / "trial.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(RunError, match=r"0003/trial.json: not a trial's record .* delete its folder"):
        read_trials(str(tmp_path))


def test_numbers_that_json_does_not_have_come_back(tmp_path: Path) -> None:
    metrics = {"epoch": 1.0, "cider": 0.2, "dev_loss": math.nan, "train_loss": math.inf}
    write_trial(str(tmp_path), trial(1).after_epoch(metrics))
    (found,) = read_trials(str(tmp_path))[1].epochs
    assert math.isnan(found.pop("dev_loss"))
    assert found == {"epoch": 1.0, "cider": 0.2, "train_loss": math.inf}


def test_epoch_without_a_finite_score_is_not_the_best() -> None:
    assert trial(1, math.nan, 0.1, math.inf).best("cider") == (0.1, 2)
    assert trial(1, math.nan).best("cider") is None


def test_trial_that_took_the_sweep_with_it_too_often_is_failed(tmp_path: Path) -> None:
    running = trial(1, 0.1, status="running")
    records = {number: running.model_copy(update={"number": number, "num_starts": number}) for number in (1, 2, 3)}
    records[3] = records[3].model_copy(update={"status": "finished"})
    found = fail_hopeless(str(tmp_path), records, max_retries=1)
    assert [found[number].status for number in (1, 2, 3)] == ["running", "failed", "finished"]
    assert found[2].error == "it was started 2 times without coming to the end of an epoch"
    assert read_trials(str(tmp_path)) == {2: found[2]}


def test_failed_trials_go_on_where_that_is_asked_for(tmp_path: Path) -> None:
    failed = TRIALS[3].model_copy(update={"num_starts": 2, "has_diverged": True})
    found = unfail(str(tmp_path), {1: TRIALS[0], 4: failed})
    assert (found[4].status, found[4].num_starts, found[4].error, found[4].has_diverged) == ("running", 0, None, False)
    assert found[1] == TRIALS[0]
    assert read_trials(str(tmp_path)) == {4: found[4]}


def test_starts_are_counted_until_a_new_epoch() -> None:
    record = trial(1, 0.1, 0.2).model_copy(update={"num_starts": 2})
    assert record.after_epoch({"epoch": 2.0, "cider": 0.3}).num_starts == 2  # it is done again
    assert record.after_epoch({"epoch": 3.0, "cider": 0.3}).num_starts == 0


def test_epochs_that_a_record_lacks_are_put_where_they_belong() -> None:
    record = trial(1, 0.1, 0.2).model_copy(update={"num_starts": 2})
    second, third, fifth = ({"epoch": epoch, "cider": 0.5} for epoch in (2.0, 3.0, 5.0))
    found = record.with_lacking([second, third])
    assert (found.scores("cider"), found.num_starts) == ({1: 0.1, 2: 0.2, 3: 0.5}, 2)
    assert record.with_lacking([second]) is record
    late = record.model_copy(update={"epochs": (*record.epochs, fifth)})
    assert late.with_lacking([third]).scores("cider") == {1: 0.1, 2: 0.2, 3: 0.5, 5: 0.5}
    assert late.with_lacking([third]).num_starts == 2  # it is not the last
    assert [epoch["epoch"] for epoch in late.with_lacking([third]).epochs] == [1, 2, 3, 5]


def test_no_trials_at_first(tmp_path: Path) -> None:
    assert read_trials(str(tmp_path / "absent")) == {}


def test_best_is_the_first_of_equal_epochs() -> None:
    assert trial(1, 0.1, 0.3, 0.3, 0.2).best("cider") == (0.3, 2)
    assert trial(1).best("cider") is None
    assert trial(1, 0.3).best("dev_loss") is None


def test_epoch_that_is_done_again_takes_the_place_of_what_came_after_it() -> None:
    """A worker that died after its report starts from its last checkpoint."""
    record = trial(1, 0.1, 0.2, 0.3).after_epoch({"epoch": 2.0, "cider": 0.25})
    assert record.scores("cider") == {1: 0.1, 2: 0.25}


def test_run_that_says_again_what_it_ended_with_changes_nothing() -> None:
    """The bundle has the metrics of the best epoch, which others may have followed."""
    record = trial(1, 0.1, 0.3, 0.2)
    assert record.after_epoch(dict(record.epochs[1])) == record


def test_only_running_trials_go_on() -> None:
    assert [record.number for record in TRIALS if not record.is_over] == [6]

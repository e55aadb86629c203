from pathlib import Path

from trials import TRIALS, trial

from caption_ray.tune.records import read_trials, write_trial


def test_records_come_back_by_number_and_one_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    for record in reversed(TRIALS):
        write_trial(str(tmp_path), record)
    assert list(read_trials(str(tmp_path)).values()) == list(TRIALS)
    file = tmp_path / "trials" / "0003" / "trial.json"
    file.write_text(file.read_text()[:40])
    (tmp_path / "trials" / "0009").mkdir()
    assert list(read_trials(str(tmp_path))) == [1, 2, 4, 5, 6]


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

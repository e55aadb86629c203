import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from caption_ray.train.failure_log import FailureLog, last_line


def test_workers_that_failed_alike_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    died = RuntimeError("A worker health check failed.\nWorker info: ...\nThe actor is dead: killed.\n")
    FailureLog().after_exception(None, {2: died, 0: ValueError(), 1: died})
    told = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["worker(s) 0 failed: ValueError", "worker(s) 1, 2 failed: The actor is dead: killed."]


def test_last_line() -> None:
    assert last_line(ValueError("a\n  b  \n\n")) == "b"
    assert last_line(KeyError()) == "KeyError"


def test_cluster_without_room_is_told_with_what_to_do() -> None:
    told = last_line(WorkerGroupStartupTimeoutError(num_workers=2))
    assert told.startswith("there was no room for its workers for minutes: ")
    assert "(--num-workers, --min-workers)" in told

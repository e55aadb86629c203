import pytest

from caption_ray.train.failure_log import FailureLog, last_line


def test_workers_that_failed_alike_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    died = RuntimeError("A worker health check failed.\nWorker info: ...\nThe actor is dead: killed.\n")
    FailureLog().after_exception(None, {2: died, 0: ValueError(), 1: died})
    told = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["worker(s) 0 failed: ValueError", "worker(s) 1, 2 failed: The actor is dead: killed."]


def test_last_line() -> None:
    assert last_line(ValueError("a\n  b  \n\n")) == "b"
    assert last_line(KeyError()) == "KeyError"

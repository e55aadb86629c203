import os
import signal
import time
from pathlib import Path

import pytest

from caption_ray.train.stopping import STOP_VARIABLE, StopWatch, plain_interrupts, stop_files, stop_on_signal


def test_a_run_is_asked_by_its_own_file_or_by_the_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_VARIABLE, raising=False)
    assert stop_files("/runs/first") == ("/runs/first/stop",)
    assert stop_files("gs://bucket/runs/first") == ("gs://bucket/runs/first/stop",)
    monkeypatch.setenv(STOP_VARIABLE, "/home/alice/stop")
    assert stop_files("/runs/first") == ("/runs/first/stop", "/home/alice/stop")


def test_the_watch_sees_a_file_that_comes_to_be(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("own", "shared")]
    watch = StopWatch(files)
    assert not watch.is_asked()
    (tmp_path / "shared").touch()
    deadline = time.monotonic() + 10
    while not watch.is_asked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watch.is_asked()
    (tmp_path / "shared").unlink()
    assert watch.is_asked()  # what was asked for stays so
    assert not StopWatch(()).is_asked()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_makes_the_file_and_ends_nothing(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    file = tmp_path / "stop"
    file.touch()  # of an earlier run
    with stop_on_signal(str(tmp_path)):
        assert not file.exists()
        os.kill(os.getpid(), number)
        assert file.read_text() == f"{number.name}\n"
    assert not file.exists()
    assert signal.getsignal(number) is before


def test_a_run_that_heeds_the_clusters_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_VARIABLE, str(tmp_path / "stop"))
    with stop_on_signal(str(tmp_path / "run")):
        assert (tmp_path / "stop.heeded").read_text() == f"{tmp_path}/run\n"
        assert not (tmp_path / "stop").exists()


def test_ctrl_c_interrupts_whatever_ray_train_makes_of_it() -> None:
    def as_ray_train(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = signal.getsignal(signal.SIGINT)

    def train() -> None:
        with plain_interrupts():
            signal.signal(signal.SIGINT, as_ray_train)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(signal.SIGINT) is before
    with plain_interrupts():
        signal.signal(signal.SIGINT, as_ray_train)
    assert signal.getsignal(signal.SIGINT) is before

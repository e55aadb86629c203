import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from caption_ray import storage
from caption_ray.train import stopping
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


@pytest.mark.parametrize(("file", "interval_s"), [("/run/stop", 0.25), ("gs://bucket/stop", 5.0)])
def test_the_watch_looks_now_and_then(file: str, interval_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    looks: list[tuple[float, str]] = []

    def look(location: str) -> bool:
        looks.append((clock.now, location))
        return False

    monkeypatch.setattr(storage, "exists", look)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock.now))
    watch = StopWatch([file])
    for intervals in (0, 0.5, 1, 1.5):
        clock.now = 100.0 + intervals * interval_s
        assert not watch.is_asked()
    assert looks == [(100.0, file), (100.0 + interval_s, file)]


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


def test_a_second_signal_amid_the_first_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, num_writes = storage.write_text, 0

    def write_and_be_asked_again(location: str, content: str) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes < 3:
            os.kill(os.getpid(), signal.SIGTERM)
        write(location, content)

    monkeypatch.setattr(storage, "write_text", write_and_be_asked_again)
    with stop_on_signal(str(tmp_path)):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (tmp_path / "stop").read_text() == "SIGUSR1\n"
        assert num_writes == 1


def test_disk_that_is_full_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with stop_on_signal(str(tmp_path)):
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_text", fill)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert "SIGUSR1: training is not asked to stop: [Errno 28] No space left on device" in caplog.text
        os.kill(os.getpid(), signal.SIGUSR1)  # it can be asked once more
        assert (tmp_path / "stop").exists()


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


def test_a_trial_beside_the_main_thread_heeds_no_signals(tmp_path: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    ends: list[object] = []

    def end() -> None:
        with stop_on_signal(str(tmp_path)):
            ends.append({number: signal.getsignal(number) for number in handlers})
        try:
            with plain_interrupts():
                raise SystemExit(3)
        except BaseException as error:
            ends.append(type(error))

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(30)
    assert ends == [handlers, SystemExit]

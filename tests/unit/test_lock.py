import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from another_driver import at_work

from caption_ray import storage
from caption_ray.errors import RunError
from caption_ray.lock import LOCK_NAME, Driver, sole_driver


def say(folder: Path, host: str, pid: int) -> None:
    (folder / LOCK_NAME).write_text(Driver(host=host, pid=pid).model_dump_json())


def gone_pid() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_second_driver_is_refused_as_long_as_the_first_is_at_work(tmp_path: Path) -> None:
    work = (
        "import sys; from caption_ray.lock import sole_driver\n"
        "with sole_driver(sys.argv[1], 'sweep', beat_s=0.05): print('working', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", work, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        message = f"process {first.pid} on {socket.gethostname()} works on this sweep"
        with pytest.raises(RunError, match=message), sole_driver(str(tmp_path), "sweep", beat_s=0.2, watch_s=30):
            pass
        first.kill()
    assert (tmp_path / LOCK_NAME).exists()
    started = time.monotonic()
    with sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=60):
        assert Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).pid == os.getpid()
    assert time.monotonic() - started < 30  # it was not watched: its process is gone
    assert list(tmp_path.iterdir()) == []


def test_driver_of_another_host_that_is_silent_is_replaced(tmp_path: Path) -> None:
    """As of a node that was lost."""
    say(tmp_path, "elsewhere", 1)
    with sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=0.3):
        assert Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).host == socket.gethostname()


def test_own_number_of_an_earlier_process_is_not_watched(tmp_path: Path) -> None:
    say(tmp_path, socket.gethostname(), os.getpid())
    started = time.monotonic()
    with sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=60):
        pass
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("field", ["boot", "pid_namespace"])
def test_number_of_another_container_of_this_host_name_is_watched(field: str, tmp_path: Path) -> None:
    """Its process is there, but not to be seen from here."""
    beside = Driver(host=socket.gethostname(), pid=gone_pid())
    assert beside.is_gone
    beside = beside.model_copy(update={field: type(getattr(beside, field))(7)})
    assert not beside.is_gone
    assert not beside.is_same(Driver(host=beside.host, pid=beside.pid))
    assert not beside.model_copy(update={"pid": os.getpid()}).is_gone
    with (
        at_work(tmp_path / LOCK_NAME, beside),
        pytest.raises(RunError, match="works on this sweep"),
        sole_driver(str(tmp_path), "sweep", beat_s=0.8, watch_s=10),
    ):
        pass


def test_driver_of_an_earlier_version_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It did not say in which container it is."""
    (tmp_path / LOCK_NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": gone_pid(), "num_beats": 3}))
    with (
        caplog.at_level(logging.INFO, "caption_ray"),
        sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=0.3),
    ):
        assert "seeing whether it is" in caplog.text


def test_link_that_nfs_reports_as_there_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made, the answer was lost, and the call repeated."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", twice)
    with sole_driver(str(tmp_path), "run", beat_s=0.1):
        assert (tmp_path / LOCK_NAME).exists()
    assert not (tmp_path / LOCK_NAME).exists()


@pytest.mark.parametrize("writing", ["create_text", "write_text"])
def test_of_two_that_start_at_once_one_is_refused(
    writing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's file comes to be between this one's look and its writing, or just after it."""
    write = getattr(storage, writing)

    def overtaken(location: str, content: str) -> None:
        write(location, content)
        Path(location).write_text(Driver(host="elsewhere", pid=7).model_dump_json())

    if writing == "write_text":
        say(tmp_path, "lost", 1)  # which both found silent
    with monkeypatch.context() as patched:
        patched.setattr(storage, writing, overtaken)
        with (
            pytest.raises(RunError, match="process 7 on elsewhere works"),
            sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=0.1),
        ):
            pass
    assert Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).host == "elsewhere"  # which goes on


def test_driver_that_stood_still_and_was_replaced_ends_at_once(tmp_path: Path) -> None:
    """Whatever it does, and without cleaning up what is the other's by now."""
    work = (
        "import sys, time; from caption_ray.lock import sole_driver\n"
        "with sole_driver(sys.argv[1], 'sweep', beat_s=0.05):\n"
        "    print('working', flush=True)\n"
        "    try: time.sleep(60)\n"
        "    finally: print('cleaning up', flush=True)"
    )
    command = [sys.executable, "-c", work, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        started = time.monotonic()
        say(tmp_path, "elsewhere", 7)
        assert first.wait(timeout=30) == 1
        assert time.monotonic() - started < 20
        assert first.stdout.read() == ""
    assert Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).host == "elsewhere"  # which goes on


def test_without_hard_links_the_last_to_write_is_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    with sole_driver(str(tmp_path), "sweep", beat_s=0.1):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
    assert list(tmp_path.iterdir()) == []


def test_storage_that_fails_for_a_moment_ends_neither_the_beats_nor_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(_: str) -> bytes:
        failed.set()
        raise OSError("503")

    def num_beats() -> int:
        return Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).num_beats

    with sole_driver(str(tmp_path), "sweep", beat_s=0.02):
        with monkeypatch.context() as patched:
            patched.setattr(storage, "read_bytes", fail)
            assert failed.wait(10)
        before, deadline = num_beats(), time.monotonic() + 10
        while num_beats() <= before + 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert num_beats() > before
        monkeypatch.setattr(storage, "read_bytes", fail)


def test_file_that_is_gone_is_written_anew_and_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / LOCK_NAME
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with sole_driver(str(tmp_path), "sweep", beat_s=0.02):
        file.unlink()
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Driver.model_validate_json(file.read_text()).pid == os.getpid()
    assert ends == []


def test_anothers_file_stays_at_the_end(tmp_path: Path) -> None:
    with sole_driver(str(tmp_path), "sweep", beat_s=30):
        say(tmp_path, "elsewhere", 7)
    assert Driver.model_validate_json((tmp_path / LOCK_NAME).read_text()).host == "elsewhere"


def test_process_of_another_user_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not Driver(host=socket.gethostname(), pid=1).is_gone


def test_driver_that_ends_while_it_is_watched_is_waited_for_no_longer(tmp_path: Path) -> None:
    say(tmp_path, "elsewhere", 7)
    ending = threading.Timer(0.2, (tmp_path / LOCK_NAME).unlink)
    ending.start()
    started = time.monotonic()
    with sole_driver(str(tmp_path), "sweep", beat_s=0.1, watch_s=30):
        assert time.monotonic() - started < 15
    ending.join(10)

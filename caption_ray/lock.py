"""One driver at a time for what is written under a name: two would write the same files.

The driver says in a file that it is at work, again and again. Whoever finds the file watches whether that goes on,
which needs no two clocks to agree; a driver on the same host whose process is gone is not waited for. Where processes
are numbered otherwise, as in another container of that host name, this cannot be seen.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, Field

from caption_ray import storage
from caption_ray.config import Settings
from caption_ray.errors import RunError

logger = logging.getLogger(__name__)

LOCK_NAME = "driver.json"
_BEAT_S = 5.0
_WATCH_S = 20.0
_UNTOLD = {"boot": "", "pid_namespace": 0}
"""Of a driver of an earlier version, which said neither: it is watched."""


def _boot() -> str:
    """Return which start of the machine this is, "" where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> int:
    """Return within what the kernel numbers this process, 0 where that is not told."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


class Driver(Settings):
    """Who is at work."""

    host: str
    pid: int
    boot: str = Field(default_factory=_boot, description="Start of the machine; by default this process's.")
    pid_namespace: int = Field(
        default_factory=_pid_namespace, description="What `pid` is a number in; by default that of this process."
    )
    model_config = ConfigDict(extra="ignore")  # a later version may say more, and is at work all the same

    num_beats: int = Field(0, description="Times that it has said so.")

    def is_same(self, other: "Driver") -> bool:
        """Tell whether the two are one process."""
        return (self._numbered_in, self.pid) == (other._numbered_in, other.pid)

    @property
    def _numbered_in(self) -> tuple[str, str, int]:
        """Two processes of one number are one where these agree: containers may share a host name."""
        return self.host, self.boot, self.pid_namespace

    @property
    def is_gone(self) -> bool:
        """It was on this host, and is no more; of other hosts, and other containers, this cannot be seen."""
        if self._numbered_in != (socket.gethostname(), _boot(), _pid_namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return self.pid == os.getpid()  # the number was given anew, to this one


@contextmanager
def sole_driver(
    folder: str, kind: str, *, name: str = LOCK_NAME, beat_s: float = _BEAT_S, watch_s: float = _WATCH_S
) -> Iterator[None]:
    """Be the only driver of a `kind` of work, for the length of a `with` block; it says so in the file `name`.

    Raises RunError where another one is at work. Where one has taken over, since this process stood still for longer
    than `watch_s`, this process ends at once, whatever it does, with exit code 1: it must write nothing any more.
    """
    path = storage.join(folder, name)
    other = _read(path)
    if other is not None and not other.is_gone:
        logger.info("%s says that process %d on %s is at work; seeing whether it is", path, other.pid, other.host)
        deadline = time.monotonic() + watch_s
        while time.monotonic() < deadline:
            time.sleep(min(beat_s, watch_s) / 4)
            now = _read(path)
            if now is not None and now != other:
                raise _taken(folder, kind, now)
            if now is None and not storage.exists(path):  # it has ended
                break
    own, ended = Driver(host=socket.gethostname(), pid=os.getpid()), threading.Event()
    can_be_made = other is None and not storage.is_uri(path)
    if not (can_be_made and storage.create_text(path, own.model_dump_json())):
        # On NFS a link that has been made may be reported as one that was there.
        if other is None and (now := _read(path)) is not None and not now.is_same(own):
            raise _taken(folder, kind, now)
        storage.write_text(path, own.model_dump_json())
        time.sleep(beat_s / 5)  # two that found no file, or a silent one's, both write it, and the last one's stays
    if (now := _read(path)) is not None and not now.is_same(own):
        raise _taken(folder, kind, now)
    arguments = (path, own, ended, beat_s, watch_s)
    thread = threading.Thread(target=_beat, args=arguments, name="sole-driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            if (now := _read(path)) is not None and now.is_same(own):
                storage.delete_file(path)
        except OSError as error:  # what was done is done
            logger.warning("%s cannot be deleted: %s", path, error)


def _taken(folder: str, kind: str, by: Driver) -> RunError:
    return RunError(
        f"{folder}: process {by.pid} on {by.host} works on this {kind}; wait for it, or end it, or choose another name"
    )


def _beat(path: str, own: Driver, ended: threading.Event, beat_s: float, watch_s: float) -> None:
    driver, last = own, time.time()  # a clock that goes on while a machine sleeps
    while not ended.wait(beat_s):
        stood_still, last = time.time() - last > watch_s, time.time()
        try:
            now = _read(path)
            if (now is None and stood_still) or (now is not None and not now.is_same(own)):
                by = "another one" if now is None else f"process {now.pid} on {now.host}"
                logger.error("%s: %s has taken over, while this process stood still: it ends", path, by)
                logging.shutdown()
                os._exit(RunError.exit_code)  # an exception would come late, and clean up what is the other's by now
            driver = driver.model_copy(update={"num_beats": driver.num_beats + 1})
            storage.write_text(path, driver.model_dump_json())
        except OSError as error:  # the next one may work; a full disk ends the work elsewhere
            logger.warning("%s cannot be read or written: %s", path, error)


def _read(path: str) -> Driver | None:
    try:
        told = json.loads(storage.read_bytes(path))
        return Driver.model_validate({**_UNTOLD, **told})
    except (FileNotFoundError, NotADirectoryError, TypeError, ValueError):
        return None

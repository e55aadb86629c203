"""One driver at a time for a run or a sweep: two would write the same checkpoints and records.

The driver says in a file of its folder that it is at work, again and again. Whoever finds the file watches whether that
goes on, which needs no two clocks to agree; a driver on the same host whose process is gone is not waited for.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field, ValidationError

from caption_ray import storage
from caption_ray.config import Record
from caption_ray.errors import RunError

logger = logging.getLogger(__name__)

LOCK_NAME = "driver.json"
_BEAT_S = 5.0
_WATCH_S = 20.0


class Driver(Record):
    """Who works on a run or a sweep."""

    host: str
    pid: int
    num_beats: int = Field(0, description="Times that it has said so.")

    @property
    def is_gone(self) -> bool:
        """It was on this host, and is no more; of other hosts this cannot be seen."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return self.pid == os.getpid()  # a container's processes have the same numbers each time it is started


@contextmanager
def sole_driver(folder: str, kind: str, *, beat_s: float = _BEAT_S, watch_s: float = _WATCH_S) -> Iterator[None]:
    """Be the only driver of a `kind` of work, in its folder, for the length of a `with` block.

    Raises RunError where another one is at work.
    """
    path = storage.join(folder, LOCK_NAME)
    other = _read(path)
    if other is not None and not other.is_gone:
        logger.info("%s says that process %d on %s is at work; seeing whether it is", path, other.pid, other.host)
        deadline = time.monotonic() + watch_s
        while time.monotonic() < deadline:
            time.sleep(min(beat_s, watch_s) / 4)
            if (now := _read(path)) is not None and now != other:
                raise _taken(folder, kind, now)
    own, ended = Driver(host=socket.gethostname(), pid=os.getpid()), threading.Event()
    storage.write_text(path, own.model_dump_json())
    time.sleep(beat_s / 5)  # two that found no file both write it, and the last one's stays
    if (now := _read(path)) is not None and (now.host, now.pid) != (own.host, own.pid):
        raise _taken(folder, kind, now)
    thread = threading.Thread(target=_beat, args=(path, own, ended, beat_s), name="sole-driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.delete_file(path)


def _taken(folder: str, kind: str, by: Driver) -> RunError:
    return RunError(
        f"{folder}: process {by.pid} on {by.host} works on this {kind}; wait for it, or end it, or use another --name"
    )


def _beat(path: str, own: Driver, ended: threading.Event, beat_s: float) -> None:
    driver = own
    while not ended.wait(beat_s):
        driver = driver.model_copy(update={"num_beats": driver.num_beats + 1})
        try:
            storage.write_text(path, driver.model_dump_json())
        except OSError as error:  # the next one may work; a full disk ends the work elsewhere
            logger.warning("%s cannot be written: %s", path, error)


def _read(path: str) -> Driver | None:
    try:
        return Driver.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, ValidationError):
        return None

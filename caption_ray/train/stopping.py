"""Asking a running training to save and stop, and where it was in its epoch when it did.

It is asked by a file: RUN/stop, which a signal to the driver makes, or the one that the environment names, by which a
cluster asks all its runs at once.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from caption_ray import storage

logger = logging.getLogger(__name__)

STOP_VARIABLE = "CAPTION_RAY_STOP_FILE"
"""Environment variable with the location of a file that asks every run below it to stop.

A run that looks for it makes a file of that name with `.heeded` after it: what asks can tell a command that saves, and
goes on when it is started again, from one that it would only break off.
"""

_STOP_NAME = "stop"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_INTERVAL_S, _URI_INTERVAL_S = 0.25, 5.0
"""Time between two looks for a file that asks: a look into a bucket is a question over the network."""


def stop_files(run_folder: str) -> tuple[str, ...]:
    """Return the locations of the files any of which asks a run to stop."""
    own = storage.join(run_folder, _STOP_NAME)
    return (own, storage.absolute(shared)) if (shared := os.environ.get(STOP_VARIABLE)) else (own,)


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt out of a `with` block in which Ray Train trains, and after it.

    Ray Train handles SIGINT by itself: it aborts the training, ends this process as if all were well or by an error of
    its own, and would go on to do so once the training is over.
    """
    in_main = threading.current_thread() is threading.main_thread()
    earlier = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not in_main:  # as in a trial, where Ray Train leaves SIGINT alone
            raise
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            signal.signal(signal.SIGINT, earlier)


class StopWatch:
    """Looks for some files now and then: they may lie where looking takes time, and training waits for that."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._interval_s = _URI_INTERVAL_S if any(storage.is_uri(file) for file in files) else _INTERVAL_S
        self._looked = float("-inf")
        self._asked = False

    def is_asked(self) -> bool:
        """Tell whether one of them has come to be."""
        if not self._asked and self._files and time.monotonic() - self._looked >= self._interval_s:
            self._asked = any(storage.exists(file) for file in self._files)
            self._looked = time.monotonic()
        return self._asked


@contextmanager
def stop_on_signal(run_folder: str) -> Iterator[None]:
    """Have SIGTERM and SIGUSR1 ask the run to stop, for the length of a `with` block, rather than end this process.

    What asked it before the block, or is still there after it, no longer counts. Outside the main thread, which alone
    can heed signals, they do what they did before.
    """
    file = storage.join(run_folder, _STOP_NAME)

    is_asking = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal is_asking
        if is_asking:  # a second signal amid the writing would take the file from under it
            return
        is_asking = True
        try:
            logger.info("%s: training saves and stops", signal.Signals(number).name)
            storage.write_text(file, f"{signal.Signals(number).name}\n")
        except OSError as error:  # raised from here it would end what is to be saved
            logger.error("%s: training is not asked to stop: %s", signal.Signals(number).name, error)
        finally:
            is_asking = False

    storage.delete_file(file)
    if shared := os.environ.get(STOP_VARIABLE):
        storage.write_text(f"{storage.absolute(shared)}.heeded", f"{run_folder}\n")
    heeding = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.signal(number, ask) for number in _SIGNALS} if heeding else {}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        storage.delete_file(file)

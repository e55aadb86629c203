"""Another process that works on what a test wants to work on, as its lock file tells of it."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caption_ray import storage
from caption_ray.lock import Driver

ELSEWHERE = Driver(host="elsewhere", pid=7)


@contextmanager
def at_work(lock: Path, driver: Driver = ELSEWHERE, beat_s: float = 0.2) -> Iterator[None]:
    """Have a driver say in its lock file, all the while, that it is at work."""
    is_over = threading.Event()

    def beat() -> None:
        for num_beats in itertools.count(1):
            if is_over.wait(beat_s):
                return
            storage.write_text(str(lock), driver.model_copy(update={"num_beats": num_beats}).model_dump_json())

    storage.write_text(str(lock), driver.model_dump_json())
    beating = threading.Thread(target=beat)
    beating.start()
    try:
        yield
    finally:
        is_over.set()
        beating.join()

"""Progress of long work as log lines: how much is done, how fast, how long it still takes."""

import logging
import time


class Progress:
    """Logs how far work over `total` pictures is, at most once in `interval_s`, and once at the end."""

    def __init__(self, logger: logging.Logger, verb: str, total: int, interval_s: float = 5.0) -> None:
        self._logger = logger
        self._verb = verb
        self._total = total
        self._interval_s = interval_s
        self._done = 0
        self._start = self._last = time.monotonic()

    def add(self, num_pictures: int) -> None:
        """Count more pictures as done."""
        self._done += num_pictures
        now = time.monotonic()
        if now - self._last < self._interval_s and self._done < self._total:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        self._logger.info(
            "%s of %s pictures %s, %.0f/s, %.0f s left",
            f"{self._done:,}",
            f"{self._total:,}",
            self._verb,
            rate,
            (self._total - self._done) / rate,
        )

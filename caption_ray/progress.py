"""Progress of long work as log lines: how much is done, how fast, how long it still takes."""

import logging
import time

_SHORTEST_S = 1.0


class Progress:
    """Logs how far work over `total` pictures is, at most once in `interval_s`, and once at the end."""

    def __init__(self, logger: logging.Logger, verb: str, total: int, interval_s: float = 5.0) -> None:
        self._logger = logger
        self._verb = verb
        self._total = total
        self._interval_s = interval_s
        self._done = 0
        # The rate counts from the first result on: before it, workers were starting.
        self._start: tuple[float, int] | None = None
        self._last = 0.0

    def add(self, num_pictures: int) -> None:
        """Count more pictures as done."""
        self._done += num_pictures
        now = time.monotonic()
        if self._start is None:
            self._start = now, self._done
        if now - self._last < self._interval_s and self._done < self._total:
            return
        self._last = now
        since, before = self._start
        if self._done == before or now - since < _SHORTEST_S:  # too short a time to speak of a rate
            self._logger.info("%s of %s pictures %s", f"{self._done:,}", f"{self._total:,}", self._verb)
            return
        rate = (self._done - before) / (now - since)
        self._logger.info(
            "%s of %s pictures %s, %.0f/s, %.0f s left",
            f"{self._done:,}",
            f"{self._total:,}",
            self._verb,
            rate,
            (self._total - self._done) / rate,
        )

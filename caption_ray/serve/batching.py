"""How many pictures a thread takes at once: its part of those that wait, and of those that are about to.

Clients that were answered together ask again together, but not at once: HTTP is spoken with one after another, for some
milliseconds each. A thread that took the first of them by itself, and another the rest, would go on so: the one with
batches of one, which are slowest by the picture. So the load is counted as a whole, and each thread takes its part.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from caption_ray.config import Settings

# Bounds that a command line shares with the settings that it gives.
BatchSize = Annotated[int, Field(ge=1, le=1024)]
MaxQueued = Annotated[int, Field(ge=1)]
NumThreads = Annotated[int, Field(ge=1, le=64)]


class BatchOptions(Settings):
    """How batches are formed; may be changed while the engine runs."""

    max_batch_size: BatchSize = Field(16, description="Most pictures that go through the model at once.")
    batch_wait_s: float = Field(
        0.0, ge=0, le=1, description="Time that a thread waits for more pictures after the first, seconds."
    )
    return_wait_s: float = Field(
        0.05,
        ge=0,
        le=1,
        description="The same while clients that have been answered are about to ask again: for so long after that.",
    )
    num_threads: NumThreads = Field(
        2, description="Threads that compute on a CPU, each on batches of its own; a GPU has one."
    )


@dataclass(slots=True)
class Load:
    """What goes through the model now, and what is expected back. Times are seconds on one clock.

    computing: pictures of each thread that computes, by its number.
    """

    computing: dict[int, int] = field(default_factory=dict)
    _answered: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many have not asked again

    def ask(self, num_pictures: int) -> None:
        """Take note of pictures that have come: of those that were answered first, their clients are back."""
        while num_pictures and self._answered:
            answered_at, num_answered = self._answered.popleft()
            if num_answered > num_pictures:
                self._answered.appendleft((answered_at, num_answered - num_pictures))
            num_pictures -= min(num_pictures, num_answered)

    def answer(self, number: int, num_pictures: int, now: float) -> None:
        """Take note of pictures that a thread has answered."""
        self.computing[number] -= num_pictures
        self._answered.append((now, num_pictures))

    def expected(self, now: float, return_wait_s: float) -> int:
        """Return how many of those answered in the last `return_wait_s` have not asked again."""
        while self._answered and self._answered[0][0] + return_wait_s <= now:
            self._answered.popleft()
        return sum(num_answered for _, num_answered in self._answered)

    def whole(self, num_waiting: int, options: BatchOptions, now: float) -> int:
        """Return how many pictures there are: those that wait, are computed, or are expected."""
        return num_waiting + sum(self.computing.values()) + self.expected(now, options.return_wait_s)

    def share(self, number: int, num_waiting: int, num_threads: int, options: BatchOptions, now: float) -> int:
        """Return how many pictures a thread should compute at once, if they are there.

        Its part of the whole, or, where that is less, of what those leave that compute already.
        """
        whole, others = self.whole(num_waiting, options, now), self.computing.keys() - {number}
        left = whole - sum(self.computing[other] for other in others)
        num_free = max(num_threads - len(others), 1)
        return min(math.ceil(whole / num_threads), math.ceil(left / num_free), options.max_batch_size)

    def wait_s(
        self, number: int, num_waiting: int, since: float, num_threads: int, options: BatchOptions, now: float
    ) -> float:
        """Return for how long a thread should wait for more than wait now; 0 where it should begin.

        since: when the first of them came.
        """
        if num_waiting >= options.max_batch_size:
            return 0.0
        until = since + options.batch_wait_s
        if num_waiting < self.share(number, num_waiting, num_threads, options, now) and self._answered:
            until = max(until, min(since, self._answered[-1][0]) + options.return_wait_s)
        return max(0.0, until - now)

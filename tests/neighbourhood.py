"""Workers of one machine as threads of a test, each with its end of what they share."""

import contextlib
import mmap
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from caption_ray.train.neighbours import Neighbours

Result = TypeVar("Result")

ENOUGH = 1 << 20


@contextlib.contextmanager
def ends(num_workers: int) -> Iterator[list[Neighbours]]:
    """Lend what each of the workers has, with a mebibyte of memory."""
    memory = mmap.mmap(-1, ENOUGH)
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(num_workers - 1)]
    first = Neighbours(memory, 0, num_workers, [near for near, _ in pairs])
    others = [Neighbours(memory, rank, num_workers, [far]) for rank, (_, far) in enumerate(pairs, start=1)]
    try:
        yield [first, *others]
    finally:
        for each in (first, *others):
            each.close()


def together(num_workers: int, work: Callable[[Neighbours], Result]) -> list[Result]:
    """Return what each of the workers, all at work at once, makes of its end."""

    def come(own: Neighbours) -> Result:
        try:
            return work(own)
        except BaseException:
            own.close()  # lest the others wait for it
            raise

    with ends(num_workers) as workers, ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(come, workers))

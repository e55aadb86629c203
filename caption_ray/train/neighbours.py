"""Workers on one machine: memory that all of them see, and a sum in which they wait for each other.

gloo, which has them reach each other otherwise, sends through the loopback what lies beside, and hands a number from
thread to thread four times before it is summed up.
"""

import contextlib
import logging
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from caption_ray.errors import RunError
from caption_ray.train.agreement import all_agree, from_first, world_size

logger = logging.getLogger(__name__)

_FOLDER = "/dev/shm"
"""Where Linux has files that are memory and nothing else."""
_MEMORY, _SOCKET = "memory", "socket"
_SPIN_S = 0.002
"""How long to look again and again for a message, before sleeping until it comes. To be woken takes some 0.1 ms."""
_PATIENCE_S = 1800
"""How long to wait for another worker, as gloo does."""


class Neighbours:
    """What a worker sees the others by; of `meet_neighbours`."""

    def __init__(self, memory: mmap.mmap, rank: int, num_workers: int, peers: Sequence[socket.socket]) -> None:
        """peers: to the first worker; on the first one to all others, in the order of their ranks."""
        self.memory, self.rank, self.num_workers = memory, rank, num_workers
        self._peers = peers
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _PATIENCE_S, 0))

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sums of all workers' values, the same to the last bit, when all have come here.

        Then each sees what others have written to the memory before.
        Raises RunError where a worker is gone.
        """
        if self.rank == 0:
            rows = [values, *(_receive(peer, len(values)) for peer in self._peers)]
            values = tuple(map(sum, zip(*rows, strict=True)))
        for peer in self._peers:
            _send(peer, values)
        return values if self.rank == 0 else _receive(self._peers[0], len(values))

    def wait(self) -> None:
        """Wait until all workers have come here."""
        self.sum(0.0)

    def close(self) -> None:
        """Leave the others; the memory stays as long as something lies in it."""
        for peer in self._peers:
            peer.close()


def meet_neighbours(num_bytes: int) -> Neighbours | None:
    """Return memory of that many zeros and a way to wait, or None where the workers are not all on this machine.

    None, too, where it has no room for the memory. Every worker must ask, and all are answered alike.
    """
    rank, num_workers = dist.get_rank(), world_size()
    with contextlib.ExitStack() as until_met:  # the files go by their names alone, which are not needed later
        opened: tuple[mmap.mmap, socket.socket] | None = None
        folder: str | None = None
        if rank == 0:
            try:
                folder = until_met.enter_context(tempfile.TemporaryDirectory(prefix="caption_ray-", dir=_FOLDER))
                opened = _create(Path(folder), num_bytes, num_workers)
            except OSError as error:
                logger.warning(
                    "the workers average gradients through the network, for want of memory to share: %.0f MB in %s: %s",
                    num_bytes / 1e6,
                    _FOLDER,
                    error.strerror,
                )
        folder = from_first(folder)
        if rank != 0 and folder is not None:
            with contextlib.suppress(OSError):  # another machine has nothing there
                opened = _join(Path(folder), num_bytes)
        all_have = all_agree(opened is not None, torch.device("cpu"))
    if opened is None:
        return None
    memory, end = opened
    if not all_have:
        end.close()
        return None
    if rank != 0:
        _send(end, (rank,))
        return Neighbours(memory, rank, num_workers, [end])
    with end:
        peers = [end.accept()[0] for _ in range(num_workers - 1)]
    return Neighbours(memory, rank, num_workers, sorted(peers, key=lambda peer: _receive(peer, 1)))


def _create(folder: Path, num_bytes: int, num_workers: int) -> tuple[mmap.mmap, socket.socket]:
    """Return the first worker's memory, and where the others come."""
    with (folder / _MEMORY).open("x+b") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # else that there is no room would be found out by SIGBUS
        memory = mmap.mmap(file.fileno(), num_bytes)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.bind(str(folder / _SOCKET))
    end.listen(num_workers)
    return memory, end


def _join(folder: Path, num_bytes: int) -> tuple[mmap.mmap, socket.socket]:
    """Return another worker's memory, and the way to the first."""
    with (folder / _MEMORY).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), num_bytes)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect(str(folder / _SOCKET))
    return memory, end


def _send(peer: socket.socket, values: Sequence[float]) -> None:
    try:
        peer.send(struct.pack(f"{len(values)}d", *values))
    except ConnectionError as error:
        raise _gone() from error


def _receive(peer: socket.socket, num_values: int) -> tuple[float, ...]:
    form = struct.Struct(f"{num_values}d")
    try:
        message = _look_for(peer, form.size) or peer.recv(form.size)
    except ConnectionError as error:
        raise _gone() from error
    except BlockingIOError as error:
        raise RunError(f"another worker of this machine has not come along for {_PATIENCE_S} s") from error
    if not message:
        raise _gone()
    return form.unpack(message)


def _look_for(peer: socket.socket, num_bytes: int) -> bytes | None:
    """Return a message, or None where none comes for a while."""
    until = time.monotonic() + _SPIN_S
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            return peer.recv(num_bytes, socket.MSG_DONTWAIT)
        os.sched_yield()
    return None


def _gone() -> RunError:
    return RunError("another worker of this machine is gone")

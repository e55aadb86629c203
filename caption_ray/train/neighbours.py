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

import torch.distributed as dist

from caption_ray.errors import RunError
from caption_ray.train.agreement import from_first, gathered, world_size

logger = logging.getLogger(__name__)

_FOLDER = "/dev/shm"
"""Where a socket is known by name for a moment: a path that is short and, unlike `$TMPDIR`, no other machine's."""
_SPIN_S = 0.002
"""How long to look again and again for a message, before sleeping until it comes. To be woken takes some 0.1 ms."""
_LONGEST = 64
"""Of any message, bytes."""
_PATIENCE_S = 1800
"""How long to wait for another worker, as gloo does."""
_MOURNING_S = 10.0
"""How long to keep still when another worker is gone. Ray ends all when one fails, and tells what each died of."""


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

    None, too, where it has no such memory or sockets. Every worker must ask, and all are answered alike.
    """
    rank, num_workers = dist.get_rank(), world_size()
    with contextlib.ExitStack() as until_met:  # sockets go by a name alone, which is not needed later
        end: socket.socket | None = None
        memory: int | None = None
        place: str | None = None
        reason: str | None = None
        try:
            if rank == 0:
                memory = _create_memory(num_bytes)
                until_met.callback(os.close, memory)
                folder = until_met.enter_context(tempfile.TemporaryDirectory(prefix="caption_ray-", dir=_FOLDER))
                end = _socket()
                end.bind(place := str(Path(folder, "socket")))
                end.listen(num_workers)
        except (OSError, AttributeError) as error:  # what a system lacks Python's modules lack
            place, reason = None, f"has no memory to share ({error})"
        place = from_first(place)
        if rank != 0 and place is not None:
            try:
                (end := _socket()).connect(place)
            except OSError:
                reason = "is on another machine"
        reasons = {worker: reason for worker, reason in enumerate(gathered(reason)) if reason is not None}
        if reasons:
            if end is not None:
                end.close()
            if rank == 0:
                (worker, reason), *_ = reasons.items()
                logger.info("all workers average gradients through the network: worker %d %s", worker, reason)
            return None
        assert end is not None
        if rank != 0:
            _send(end, (rank,))
            return Neighbours(_receive_memory(end, num_bytes), rank, num_workers, [end])
        assert memory is not None
        with end:
            peers = sorted((end.accept()[0] for _ in range(num_workers - 1)), key=lambda peer: _receive(peer, 1))
        for peer in peers:
            socket.send_fds(peer, [b"memory"], [memory])
        return Neighbours(mmap.mmap(memory, num_bytes), rank, num_workers, peers)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _create_memory(num_bytes: int) -> int:
    """Return the descriptor of memory that has no name: it is gone with the last process that has it."""
    memory = os.memfd_create("caption_ray")
    os.truncate(memory, num_bytes)
    return memory


def _receive_memory(first: socket.socket, num_bytes: int) -> mmap.mmap:
    _, (memory,), *_ = socket.recv_fds(first, 16, 1)
    try:
        return mmap.mmap(memory, num_bytes)
    finally:
        os.close(memory)


def _send(peer: socket.socket, values: Sequence[float]) -> None:
    try:
        peer.send(struct.pack(f"{len(values)}d", *values))
    except ConnectionError as error:
        raise _gone() from error


def _receive(peer: socket.socket, num_values: int) -> tuple[float, ...]:
    form = struct.Struct(f"{num_values}d")
    try:
        message = _look_for(peer) or peer.recv(_LONGEST)
    except ConnectionError as error:
        raise _gone() from error
    except BlockingIOError as error:
        raise RunError(f"another worker of this machine has not come along for {_PATIENCE_S} s") from error
    if not message:
        raise _gone()
    if len(message) != form.size:
        raise RunError("the workers of this machine are not at the same point of a step")
    return form.unpack(message)


def _look_for(peer: socket.socket) -> bytes | None:
    """Return a message, or None where none comes for a while."""
    until = time.monotonic() + _SPIN_S
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            return peer.recv(_LONGEST, socket.MSG_DONTWAIT)
        os.sched_yield()
    return None


def _gone() -> RunError:
    time.sleep(_MOURNING_S)
    return RunError("another worker of this machine is gone")

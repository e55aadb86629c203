"""Two processes find each other on one machine, or find that they cannot share its memory."""

import errno
import logging
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from caption_ray.train import neighbours
from caption_ray.train.agreement import from_first
from caption_ray.train.neighbours import Neighbours, meet_neighbours
from caption_ray.train.shared_weights import share_weights

ENOUGH = 4096


def meet(rank: int) -> None:
    own = meet_neighbours(ENOUGH)
    assert isinstance(own, Neighbours)
    assert (own.rank, own.num_workers, bytes(own.memory)) == (rank, 2, bytes(ENOUGH))
    own.wait()
    assert list(Path(neighbours._FOLDER).iterdir()) == []
    own.memory[rank] = 10 + rank
    own.wait()
    assert list(own.memory[:2]) == [10, 11]
    assert own.sum(1.5, rank) == (3.0, 1.0)
    own.close()


def meet_in_vain(rank: int, reason: str) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    neighbours.logger.addHandler(handler)
    neighbours.logger.setLevel(logging.INFO)
    try:
        assert meet_neighbours(ENOUGH) is None
    finally:
        neighbours.logger.removeHandler(handler)
    dist.barrier()
    assert list(Path(neighbours._FOLDER).iterdir()) == []
    assert lines == ([f"all workers average gradients through the network: {reason}"] if rank == 0 else [])


def meet_where_a_system_lacks_it(rank: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        meet_in_vain(rank, "worker 0 has no memory to share ([Errno 38] Function not implemented)")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "memfd_create")
        meet_in_vain(rank, "worker 0 has no memory to share (module 'os' has no attribute 'memfd_create')")


def meet_elsewhere(rank: int) -> None:
    """The second worker's machine has nobody where the first waits."""

    def misled(value: str | None) -> str | None:
        told = from_first(value)
        return told and f"{told}-elsewhere"

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(neighbours, "from_first", misled)
        meet_in_vain(rank, "worker 1 is on another machine")


def share(rank: int) -> None:
    """All begin with the first one's weights, those that do not train included."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(rank + 1)
    shared = share_weights(model)
    assert shared is not None
    assert all(torch.equal(value, torch.ones_like(value)) for value in model.state_dict().values())
    with torch.no_grad():
        shared.neighbours.wait()
        for part in shared.own(shared.weights):
            part += rank + 1
        shared.neighbours.wait()
    # 6 + 2 + 2 numbers, a line each: the first worker has the first line, the second the other two.
    assert [weight.unique().tolist() for weight in shared.weights] == [[2.0], [3.0], [3.0]]
    assert model[0].bias.tolist() == [1.0, 1.0]
    shared.neighbours.close()


def share_of_two_kinds(rank: int) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).double())
    assert share_weights(model) is None
    assert [weight.dtype for weight in model.parameters()] == [torch.float32] * 2 + [torch.float64] * 2


def run_worker(rank: int, folder: str) -> None:
    neighbours._FOLDER = folder + "/meeting"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        for work in (meet, meet_where_a_system_lacks_it, meet_elsewhere, share, share_of_two_kinds, meet):
            work(rank)
            dist.barrier()
    finally:
        dist.destroy_process_group()


def test_workers_share_memory_where_they_can(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    torch.multiprocessing.spawn(run_worker, (str(tmp_path),), nprocs=2)


def test_one_worker_shares_with_nobody() -> None:
    assert share_weights(nn.Linear(3, 2)) is None

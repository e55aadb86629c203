"""What each training worker asks of the cluster, checked before anything waits for it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from caption_ray.errors import UsageError

MORE_CPUS = "start Ray with more CPUs (--cpus-per-task in SLURM)"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResources:
    """How many workers there are, and what Ray reserves for each."""

    num_workers: int
    min_workers: int
    """With how few training goes on where nodes are lost."""
    use_gpu: bool
    cpus_per_worker: float
    threads_per_worker: int
    """Torch threads of a CPU worker; 0 where the work is a GPU's."""
    gpus_per_worker: float = 1.0
    """Where a GPU's work it is: below 1, workers of several runs share one."""
    memory_per_worker: int = 0
    """Bytes that are reserved; 0 where nothing is, and workers take what they need."""

    @property
    def range(self) -> int | tuple[int, int]:
        """How many workers there are, in Ray's terms."""
        return self.num_workers if self.min_workers == self.num_workers else (self.min_workers, self.num_workers)

    @property
    def per_worker(self) -> dict[str, float]:
        """The reservation, in Ray's terms."""
        reserved = {"CPU": self.cpus_per_worker}
        if self.use_gpu:
            reserved["GPU"] = self.gpus_per_worker
        if self.memory_per_worker:
            reserved["memory"] = float(self.memory_per_worker)
        return reserved

    @property
    def gpu_share(self) -> float:
        """What a worker's process may take of its GPU's memory; 1 where it has one to itself, or none."""
        return self.gpus_per_worker if self.use_gpu else 1.0


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    num_workers: int | None = None,
    min_workers: int | None = None,
    cpus_per_worker: float | None = None,
) -> WorkerResources:
    """Fit the workers to the nodes of a cluster, given the resources of each (as `ray.nodes()` has them).

    By default there is a worker per GPU, or one where there is none; all workers together leave a CPU to Ray Data,
    whose tasks would else never start. A worker lies on one node. Raises UsageError where more is asked for than the
    nodes have: Ray itself would wait for it, for ever. With `min_workers`, as many of `num_workers` as fit will do to
    begin with; and whatever nodes are lost, if those left hold `min_workers`, then Ray starts as many of `num_workers`
    there as it has room for, and these too leave a CPU to Ray Data. The share is the largest with which they do.
    """
    if min_workers is not None:
        if num_workers is None or min_workers > num_workers:
            raise UsageError(f"--min-workers {min_workers}: must be at most --num-workers, which is {num_workers}")
        least = plan_workers(nodes, device=device, num_workers=min_workers, cpus_per_worker=cpus_per_worker)
        return _let_nodes_be_lost(nodes, replace(least, num_workers=num_workers), cpus_per_worker)
    num_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    num_gpus = int(sum(node.get("GPU", 0.0) for node in nodes))
    use_gpu = num_gpus > 0 if device == "auto" else device == "gpu"
    wanted = num_workers or (num_gpus if use_gpu else 1)
    on_nodes = "" if len(nodes) == 1 else f" on {len(nodes)} nodes"
    has = f"the cluster has {num_cpus:g} CPU(s) and {num_gpus} GPU(s){on_nodes}"
    if use_gpu and num_gpus < 1:
        raise UsageError(f"--device gpu: {has}; start it on a node with a GPU, or train with --device cpu")
    if use_gpu and wanted > num_gpus:
        raise UsageError(f"--num-workers {wanted}: each takes a GPU, and {has}; ask for at most {num_gpus}")
    if not use_gpu and wanted > num_cpus:
        raise UsageError(f"--num-workers {wanted}: each takes a CPU, and {has}; ask for at most {num_cpus:g}")
    fair = _round_down(_largest_share(nodes, wanted, use_gpu))
    share = cpus_per_worker if cpus_per_worker is not None else min(fair, 1.0) if use_gpu else fair
    if share <= 0 or not _fits(nodes, share, wanted, use_gpu):
        remedy = (
            f"ask for at most {fair:g} CPU(s) each (--cpus-per-worker), or start Ray with more"
            if fair > 0
            else f"ask for fewer workers, or {MORE_CPUS}"
        )
        raise UsageError(
            f"--num-workers {wanted} with {share:g} CPU(s) each: {has}, of which one must be left for Ray Data; "
            f"{remedy}"
        )
    # Who says how many CPUs a worker has has left the others to somebody else.
    threads = _threads(nodes, share, wanted) if cpus_per_worker is None else max(1, int(share))
    return WorkerResources(
        num_workers=wanted,
        min_workers=wanted,
        use_gpu=use_gpu,
        cpus_per_worker=share,
        threads_per_worker=0 if use_gpu else threads,
    )


def _let_nodes_be_lost(
    nodes: Sequence[Mapping[str, float]], workers: WorkerResources, cpus_per_worker: float | None
) -> WorkerResources:
    """Choose the share anew, so that workers leave a CPU to Ray Data on whatever nodes hold `min_workers` of them."""
    shares = _shares(nodes)
    allowed = [share for share in shares if share <= 1] if workers.use_gpu else shares
    share = _best_share(nodes, allowed if cpus_per_worker is None else [cpus_per_worker], workers)
    if not share:
        raise UsageError(_refusal(nodes, shares, workers, cpus_per_worker))
    if workers.use_gpu or cpus_per_worker is not None:
        return replace(workers, cpus_per_worker=share)
    return replace(workers, cpus_per_worker=share, threads_per_worker=_threads(nodes, share, workers.num_workers))


def _refusal(
    nodes: Sequence[Mapping[str, float]],
    shares: Sequence[float],
    workers: WorkerResources,
    cpus_per_worker: float | None,
) -> str:
    """Say why nodes must not be lost, and with which share they might be."""
    asked, smaller = f"--min-workers {workers.min_workers}", 0.0
    if cpus_per_worker is not None:
        asked += f" with {cpus_per_worker:g} CPU(s) each (--cpus-per-worker)"
        smaller = _best_share(nodes, [share for share in shares if share < cpus_per_worker], workers)
    if smaller:
        remedy = f"ask for at most {smaller:g} CPU(s) each (--cpus-per-worker), or {MORE_CPUS}"
    elif larger := _best_share(nodes, shares, workers):  # small nodes, which then hold no worker
        remedy = f"ask for {larger:g} CPU(s) each (--cpus-per-worker), or {MORE_CPUS}"
    else:
        remedy = f"{MORE_CPUS} on each node, or leave out --min-workers"
    return (
        f"{asked}: Ray starts as many of {workers.num_workers} workers as the nodes have room for, or those left of "
        f"them; of their CPUs one must be left for Ray Data, and would not be; {remedy}"
    )


def _shares(nodes: Sequence[Mapping[str, float]]) -> list[float]:
    """Return all that a worker's share may be, rounded: whole CPUs of the largest node, or hundredths of one."""
    largest = int(max(node.get("CPU", 0.0) for node in nodes))
    return [*(float(whole) for whole in range(largest, 0, -1)), *(part / 100 for part in range(99, 0, -1))]


def _best_share(nodes: Sequence[Mapping[str, float]], shares: Sequence[float], workers: WorkerResources) -> float:
    """Return the share with which most workers begin, of these the largest; 0 where Ray Data may be left none.

    A share with which CPU workers may be more than their node has CPUs, each a thread at least, is the last resort:
    Ray packs them on one node while others lie idle.
    """
    most, use_gpu = workers.num_workers, workers.use_gpu

    def merit(share: float) -> tuple[bool, int, float]:
        rooms = [_room(node, share, use_gpu) for node in nodes]
        crowded = any(min(most, room) > node.get("CPU", 0.0) for node, room in zip(nodes, rooms, strict=True))
        return use_gpu or not crowded, min(most, sum(rooms)), share

    return max((share for share in shares if _always_fits(nodes, share, workers)), key=merit, default=0.0)


def _always_fits(nodes: Sequence[Mapping[str, float]], share: float, workers: WorkerResources) -> bool:
    """Tell whether all nodes hold `min_workers`, and `_fits` holds for what Ray starts on any nodes that do.

    To keep a CPU costs a node some of its room, and several nodes what it costs the one that can best spare it. They
    fail where that is a worker or more, and their room less than `num_workers` and it. So one looks, for each cost,
    for nodes that all have it, or a greater one, and whose rooms sum up to so little, but to `min_workers`. The sums
    that any nodes have are the bits of one number: nodes may be as many and as different as they like.
    """
    most, fewest, use_gpu = workers.num_workers, workers.min_workers, workers.use_gpu
    rooms = Counter[tuple[int, int | None]]()
    for node in nodes:
        room = _room(node, share, use_gpu)
        can_keep = node.get("CPU", 0.0) >= 1
        rooms[room, room - _room(node, share, use_gpu, kept=1) if can_keep else None] += 1
    if sum(room * count for (room, _), count in rooms.items()) < fewest:
        return False
    if sum(room * count for (room, cost), count in rooms.items() if cost is None) >= fewest:
        return False
    for least in {cost for _, cost in rooms if cost}:
        too_few = most + least  # with as much room there is enough for all, and a CPU
        sums = 1
        for (room, cost), count in rooms.items():
            if room and (cost is None or cost >= least):
                for _ in range(min(count, too_few // room)):
                    sums |= (sums << room) & ((1 << too_few) - 1)
        if sums >> fewest:
            return False
    return True


def _fits(nodes: Sequence[Mapping[str, float]], share: float, wanted: int, use_gpu: bool) -> bool:
    """Tell whether some node can keep a CPU for Ray Data, and all together hold that many workers besides."""
    room = sum(_room(node, share, use_gpu) for node in nodes)
    return any(
        node.get("CPU", 0.0) >= 1 and room - _room(node, share, use_gpu) + _room(node, share, use_gpu, kept=1) >= wanted
        for node in nodes
    )


def _room(node: Mapping[str, float], share: float, use_gpu: bool, kept: int = 0) -> int:
    """Return how many workers a node can hold, `kept` of its CPUs set aside."""
    by_cpu = int((node.get("CPU", 0.0) - kept) / share + 1e-6)  # 7 / 0.28 is a little under 25
    return min(by_cpu, int(node.get("GPU", 0.0))) if use_gpu else by_cpu


def _largest_share(nodes: Sequence[Mapping[str, float]], wanted: int, use_gpu: bool) -> float:
    """Return the most CPUs that every worker can have, 0 where they do not fit at all."""
    sizes = {node.get("CPU", 0.0) - kept for node in nodes for kept in (0, 1)}
    shares = sorted({size / workers for size in sizes if size > 0 for workers in range(1, wanted + 1)}, reverse=True)
    return next((share for share in shares if _fits(nodes, share, wanted, use_gpu)), 0.0)


def _threads(nodes: Sequence[Mapping[str, float]], share: float, wanted: int) -> int:
    """Return the torch threads of a CPU worker, so that no node that holds workers has more threads than CPUs."""
    sizes = [(node.get("CPU", 0.0), min(wanted, _room(node, share, use_gpu=False))) for node in nodes]
    return max(1, min(int(num_cpus // workers) for num_cpus, workers in sizes if workers))


def _round_down(share: float) -> float:
    """Return whole CPUs, or hundredths of one."""
    return float(int(share)) if share >= 1 else int(share * 100) / 100

"""What each training worker asks of the cluster, checked before anything waits for it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from caption_ray.errors import UsageError


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
    begin with.
    """
    if min_workers is not None:
        if num_workers is None or min_workers > num_workers:
            raise UsageError(f"--min-workers {min_workers}: must be at most --num-workers, which is {num_workers}")
        planned = _plan_most(nodes, range(num_workers, min_workers - 1, -1), device, cpus_per_worker)
        return replace(planned, num_workers=num_workers, min_workers=min_workers)
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
        raise UsageError(
            f"--num-workers {wanted} with {share:g} CPU(s) each: {has}, of which one must be left for Ray Data; "
            f"ask for at most {fair:g} CPU(s) each (--cpus-per-worker), or start Ray with more"
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


def _plan_most(
    nodes: Sequence[Mapping[str, float]],
    counts: Sequence[int],
    device: Literal["auto", "cpu", "gpu"],
    cpus_per_worker: float | None,
) -> WorkerResources:
    """Fit the first of some numbers of workers that the nodes have room for; UsageError names the last one."""
    for count in counts[:-1]:
        with suppress(UsageError):
            return plan_workers(nodes, device=device, num_workers=count, cpus_per_worker=cpus_per_worker)
    return plan_workers(nodes, device=device, num_workers=counts[-1], cpus_per_worker=cpus_per_worker)


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

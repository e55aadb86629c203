"""How many trials fit into the cluster at a time, and what each reserves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from caption_ray.errors import UsageError
from caption_ray.train.resources import WorkerResources

WAITING_BYTES = 256 << 20
"""Memory of the process that waits for a trial's worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What each trial's one worker reserves, and how many run at a time."""

    workers: WorkerResources
    num_at_once: int


def pack_trials(
    nodes: Sequence[Mapping[str, float]],
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.25,
    memory_per_trial_gb: float | None = None,
    num_at_once: int | None = None,
    kept_cpus: int = 0,
) -> Packing:
    """Fit trials of one worker each to the nodes of a cluster, given the resources of each.

    A GPU shared by four trials must have the memory for all of them, each of which is held to its part.
    memory_per_trial_gb: the node's memory that a worker needs, in 10^9 bytes; by default it is not looked at.
    kept_cpus: left over on some node for Ray Data.  num_at_once: the most that run together, by default all that fit.
    Raises UsageError where not a single trial fits, which Ray would wait for, for ever.
    """
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    use_gpu = num_gpus > 0 if device == "auto" else device == "gpu"
    num_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    has = f"the cluster has {num_cpus:g} CPU(s) and {num_gpus:g} GPU(s)"
    if use_gpu and num_gpus == 0:
        raise UsageError(f"--device gpu: {has}; start it on a node with a GPU, or sweep with --device cpu")
    if use_gpu and gpus_per_trial > 1:
        raise UsageError(f"--gpus-per-trial {gpus_per_trial:g}: a trial is a single worker, which has one GPU at most")
    num_bytes = int((memory_per_trial_gb or 0.0) * 1e9)
    gpus = gpus_per_trial if use_gpu else 0.0
    rooms = [_room(node, cpus_per_trial, gpus, num_bytes) for node in nodes]
    beside = [
        (room, _room(node, cpus_per_trial, gpus, num_bytes, kept_cpus))
        for node, room in zip(nodes, rooms, strict=True)
        if node.get("CPU", 0.0) >= kept_cpus
    ]
    # Where a trial goes is Ray's to choose: as many as leave some node its CPUs however they are placed.
    is_always_kept = any(room == left for room, left in beside)
    room = sum(rooms) if is_always_kept else max(0, sum(left + 1 for _, left in beside) - 1)
    if room < 1:
        asked = f"{cpus_per_trial:g} CPU(s)" + (f" and {gpus_per_trial:g} GPU" if use_gpu else "")
        if num_bytes:
            largest = max(node.get("memory", 0.0) for node in nodes)
            asked += f" and {num_bytes / 1e9:g} GB of memory beside {WAITING_BYTES / 1e9:.2g} GB to wait with"
            has += f", and {largest / 1e9:.3g} GB on its largest node"
        kept = f", of which {kept_cpus} must be left for Ray Data" if kept_cpus else ""
        raise UsageError(
            f"a trial asks for {asked}, and {has}{kept}; ask for less by --cpus-per-trial or --memory-per-trial-gb"
        )
    workers = WorkerResources(
        num_workers=1,
        min_workers=1,
        use_gpu=use_gpu,
        cpus_per_worker=cpus_per_trial,
        gpus_per_worker=gpus_per_trial,
        memory_per_worker=num_bytes,
        threads_per_worker=0 if use_gpu else max(1, int(cpus_per_trial)),
    )
    return Packing(workers=workers, num_at_once=min(room, num_at_once or room))


def _room(node: Mapping[str, float], cpus: float, gpus: float, num_bytes: int, kept: int = 0) -> int:
    """Return how many trials a node can hold, `kept` of its CPUs set aside; a trial does not span two GPUs."""
    room = int((node.get("CPU", 0.0) - kept) / cpus + 1e-6)
    if gpus:
        room = min(room, int(node.get("GPU", 0.0)) * int(1 / gpus + 1e-6))
    return min(room, int(node.get("memory", 0.0) / (num_bytes + WAITING_BYTES))) if num_bytes else room

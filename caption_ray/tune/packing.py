"""How many trials fit into the cluster at a time, and what each reserves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from caption_ray.errors import UsageError
from caption_ray.train.resources import WorkerResources


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
    num_at_once: int | None = None,
    kept_cpus: int = 0,
) -> Packing:
    """Fit trials of one worker each to the nodes of a cluster, given the resources of each.

    Fractions are Ray's bookkeeping: a GPU shared by four trials must have the memory for all of them.
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
    room = sum(_room(node, cpus_per_trial, gpus_per_trial if use_gpu else 0.0) for node in nodes)
    if room * cpus_per_trial > num_cpus - kept_cpus:
        room -= math.ceil(kept_cpus / cpus_per_trial)
    if room < 1:
        asked = f"{cpus_per_trial:g} CPU(s)" + (f" and {gpus_per_trial:g} GPU" if use_gpu else "")
        kept = f", of which {kept_cpus} must be left for Ray Data" if kept_cpus else ""
        raise UsageError(f"a trial asks for {asked}, and {has}{kept}; ask for less by --cpus-per-trial")
    workers = WorkerResources(
        num_workers=1,
        min_workers=1,
        use_gpu=use_gpu,
        cpus_per_worker=cpus_per_trial,
        gpus_per_worker=gpus_per_trial,
        threads_per_worker=0 if use_gpu else max(1, int(cpus_per_trial)),
    )
    return Packing(workers=workers, num_at_once=min(room, num_at_once or room))


def _room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many trials a node can hold; a trial does not span two GPUs."""
    by_cpu = int(node.get("CPU", 0.0) / cpus + 1e-6)
    return min(by_cpu, int(node.get("GPU", 0.0)) * int(1 / gpus + 1e-6)) if gpus else by_cpu

"""What each training worker asks of the cluster, checked before anything waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from caption_ray.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResources:
    """How many workers there are, and what Ray reserves for each."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    threads_per_worker: int
    """Torch threads of a CPU worker; 0 where the work is a GPU's."""

    @property
    def per_worker(self) -> dict[str, float]:
        """The reservation, in Ray's terms."""
        cpus = {"CPU": self.cpus_per_worker}
        return {**cpus, "GPU": 1.0} if self.use_gpu else cpus


def plan_workers(
    cluster: Mapping[str, float],
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    num_workers: int | None = None,
    cpus_per_worker: float | None = None,
) -> WorkerResources:
    """Fit the workers to a cluster with `cluster` resources in all (as `ray.cluster_resources()` gives them).

    By default there is a worker per GPU, or one where there is none; all workers together leave a CPU to Ray Data,
    whose tasks would else never start. Raises UsageError where more is asked for than the cluster has: Ray itself
    would wait for it, for ever.
    """
    num_cpus, num_gpus = cluster.get("CPU", 0.0), int(cluster.get("GPU", 0))
    use_gpu = num_gpus > 0 if device == "auto" else device == "gpu"
    wanted = num_workers or (num_gpus if use_gpu else 1)
    has = f"the cluster has {num_cpus:g} CPU(s) and {num_gpus} GPU(s)"
    if use_gpu and num_gpus < 1:
        raise UsageError(f"--device gpu: {has}; start it on a node with a GPU, or train with --device cpu")
    if use_gpu and wanted > num_gpus:
        raise UsageError(f"--num-workers {wanted}: each takes a GPU, and {has}; ask for at most {num_gpus}")
    if not use_gpu and wanted > num_cpus:
        raise UsageError(f"--num-workers {wanted}: each takes a CPU, and {has}; ask for at most {num_cpus:g}")
    fair = _round_down((num_cpus - 1) / wanted)
    share = cpus_per_worker if cpus_per_worker is not None else min(fair, 1.0) if use_gpu else fair
    if share <= 0 or share * wanted > num_cpus - 1 + 1e-6:  # 25 * 0.28 is a little over 7
        raise UsageError(
            f"--num-workers {wanted} with {share:g} CPU(s) each: {has}, of which one must be left for Ray Data; "
            f"ask for at most {fair:g} CPU(s) each (--cpus-per-worker), or start Ray with more"
        )
    return WorkerResources(
        num_workers=wanted,
        use_gpu=use_gpu,
        cpus_per_worker=share,
        threads_per_worker=0 if use_gpu else max(1, int(num_cpus // wanted)),
    )


def _round_down(share: float) -> float:
    """Return whole CPUs, or hundredths of one."""
    return float(int(share)) if share >= 1 else int(share * 100) / 100

"""A function run in workers of Ray Train, fed as training is."""

import tempfile
from collections.abc import Callable
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch

from caption_ray.cluster import KEEP_MEMORY, set_up_ray_train
from caption_ray.data.pipeline import ExactSplit


def run_in_workers(
    loop: Callable[[dict[str, Any]], float], config: dict[str, Any], dataset: ray.data.Dataset, num_workers: int = 1
) -> float:
    """Return what `loop` returns for `config` in the first of the workers, sharing a CPU, and with GPUs if any are."""
    set_up_ray_train()
    with tempfile.TemporaryDirectory() as runs:
        trainer = ray.train.torch.TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=torch.cuda.is_available(),
                resources_per_worker={"CPU": 1 / num_workers},
            ),
            datasets={"train": dataset},
            dataset_config=ExactSplit(),
            run_config=ray.train.RunConfig(storage_path=runs, worker_runtime_env={"env_vars": KEEP_MEMORY}),
        )
        return float(trainer.fit().return_value)

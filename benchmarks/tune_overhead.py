"""What Ray Tune and Ray Train take for a trial that does nothing: `python benchmarks/tune_overhead.py`.

Three ways, one trial after another: a function that reports once, under Tune; the same with a Ray Train worker within,
as trials of a sweep have; and a Ray Train run without Tune. Prints the seconds per trial of each.
"""

import argparse
import tempfile
import time
from typing import Any

import ray.train
import ray.train.torch
import ray.tune
from compare import report
from ray.tune.integration.ray_train import TuneReportCallback

from caption_ray.cluster import connect


def loop() -> None:
    """Report once."""
    ray.train.report({"epoch": 1})


def fit(storage: str, name: str, callbacks: list[ray.train.UserCallback]) -> None:
    """Run a worker that does nothing."""
    ray.train.torch.TorchTrainer(
        loop,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    ).fit()


def plain_trial(config: dict[str, Any]) -> None:  # noqa: ARG001 - Tune hands it in
    """Do nothing, under Tune alone."""
    ray.tune.report({"epoch": 1})


def trial_with_worker(config: dict[str, Any]) -> None:
    """Do nothing in a worker, as a sweep's trials would."""
    fit(config["storage"], ray.tune.get_context().get_trial_id(), [TuneReportCallback()])


def tune(function: Any, storage: str, name: str, num_trials: int) -> float:
    """Return the seconds per trial, one after another."""
    started = time.perf_counter()
    ray.tune.Tuner(
        ray.tune.with_resources(function, {"cpu": 0.1}),
        param_space={"storage": storage},
        tune_config=ray.tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=1),
        run_config=ray.tune.RunConfig(name=name, storage_path=storage, verbose=0),
    ).fit()
    return (time.perf_counter() - started) / num_trials


def main() -> None:
    """Measure all three and print what Tune adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage, connect(dashboard=True):
        fit(storage, "warm-up", [])
        plain = tune(plain_trial, storage, "plain", arguments.trials)
        inside = tune(trial_with_worker, storage, "inside", arguments.trials)
        started = time.perf_counter()
        for number in range(arguments.trials):
            fit(storage, f"alone-{number}", [])
        alone = (time.perf_counter() - started) / arguments.trials
    report(
        {
            "seconds_per_trial": {"tune": plain, "tune_with_train": inside, "train": alone},
            "added_by_tune": inside - alone,
        }
    )


if __name__ == "__main__":
    main()

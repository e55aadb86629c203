"""Trials together against one after another: `python benchmarks/tune_packing.py --data D --features F`.

The same trials, an epoch each, four at a time with half a CPU and a thread each, and one after another with both CPUs
and two threads. Prints trials per second of training and how many times as fast together is: once over whole sweeps,
which is what a person waits for, and once without what every sweep begins with.
"""

import argparse
import tempfile
import time

from compare import report
from tune_stopping import SPACE, small_experiment

from caption_ray.logs import configure_logging
from caption_ray.tune.records import StoppingConfig
from caption_ray.tune.sweep import SweepRequest, sweep


def seconds(arguments: argparse.Namespace, storage: str, num_at_once: int) -> float:
    """Return the seconds of a sweep with that many trials at a time."""
    experiment = small_experiment(arguments.epochs)
    started = time.perf_counter()
    sweep(
        SweepRequest(
            preset_name="flickr8k",
            preset=experiment,
            experiment=experiment,
            space=SPACE,
            data=arguments.data,
            features=arguments.features,
            storage=storage,
            name=f"{num_at_once}-at-once",
            num_trials=arguments.trials,
            search="random",
            stopping=StoppingConfig(early=False),
            device="cpu",
            cpus_per_trial=arguments.cpus / num_at_once,
            num_at_once=num_at_once,
        )
    )
    return time.perf_counter() - started


def main() -> None:
    """Measure one, two and four trials at a time, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=2.0)
    arguments = parser.parse_args()
    configure_logging()
    with tempfile.TemporaryDirectory() as storage:
        taken = {at_once: seconds(arguments, storage, at_once) for at_once in (1, 2, 4)}
    report(
        {
            "seconds": {f"{at_once} at a time": found for at_once, found in taken.items()},
            "four_to_one": taken[1] / taken[4],
            "two_to_one": taken[1] / taken[2],
        }
    )


if __name__ == "__main__":
    main()

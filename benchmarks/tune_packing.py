"""Trials together against one after another: `python benchmarks/tune_packing.py --data D --features F`.

The same trials, an epoch each by default: four at a time with half a CPU and a thread each, two with a CPU each, and
one after another with both CPUs and two threads. Prints the seconds of each sweep from start to report, which is
what a person waits for, and how many times as fast together is.
"""

import argparse
import tempfile
import time
from dataclasses import replace

from compare import report
from tune_stopping import small_sweep

from caption_ray.logs import configure_logging
from caption_ray.tune.sweep import sweep


def seconds(arguments: argparse.Namespace, storage: str, num_at_once: int) -> float:
    """Return the seconds of a sweep with that many trials at a time."""
    name = f"{num_at_once}-at-once"
    request = small_sweep(arguments.data, arguments.features, storage, name, arguments.trials, arguments.epochs)
    started = time.perf_counter()
    sweep(replace(request, cpus_per_trial=arguments.cpus / num_at_once, num_at_once=num_at_once))
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

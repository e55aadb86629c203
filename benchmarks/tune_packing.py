"""Trials together against one after another: `python benchmarks/tune_packing.py --data D --features F`.

The same trials, three epochs each by default: four at a time with half a CPU and a thread each, two with a CPU each,
and one after another with both CPUs and two threads, all on one Ray that was started before. Prints for each sweep the
seconds from start to report, which is what a person waits for; those of them before the first trial and after the last
(`fixed`: features are read, a page is written), which any number of trials costs once; and the others per trial. The
ratios say how many times as fast together is, by trial and by the whole. Each is measured once, after a sweep of a
single trial that counts for nothing.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from compare import report
from tune_stopping import small_sweep

from caption_ray.cluster import connect
from caption_ray.logs import configure_logging
from caption_ray.tune.sweep import sweep


def seconds(arguments: argparse.Namespace, storage: str, num_at_once: int, num_trials: int) -> dict[str, float]:
    """Return the seconds of a sweep with that many trials at a time: all, those without a trial, those per trial."""
    name = f"{num_trials}-trials-{num_at_once}-at-once"
    request = small_sweep(arguments.data, arguments.features, storage, name, num_trials, arguments.epochs)
    started = time.perf_counter()
    sweep(replace(request, cpus_per_trial=arguments.cpus / num_at_once, num_at_once=num_at_once))
    whole = time.perf_counter() - started
    trials = Path(storage, name, "trials")
    begun = min(path.stat().st_mtime for path in trials.glob("*/run.json"))  # written once, as a trial begins
    ended = max(path.stat().st_mtime for path in trials.glob("*/trial.json"))
    return {
        "whole": whole,
        "fixed": whole - (ended - begun),
        "per_trial": (ended - begun) / num_trials,
    }


def main() -> None:
    """Measure one, two and four trials at a time, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cpus", type=float, default=2.0)
    arguments = parser.parse_args()
    configure_logging()
    with tempfile.TemporaryDirectory() as storage, connect(dashboard=True):
        seconds(arguments, storage, 1, 1)  # what the first one of a machine compiles and reads from disk
        taken = {at_once: seconds(arguments, storage, at_once, arguments.trials) for at_once in (1, 2, 4)}
    report(
        {
            "seconds": {f"{at_once} at a time": found for at_once, found in taken.items()},
            **{
                f"{word}_to_one": {
                    figure: taken[1][figure] / taken[at_once][figure] for figure in ("per_trial", "whole")
                }
                for word, at_once in (("four", 4), ("two", 2))
            },
        }
    )


if __name__ == "__main__":
    main()

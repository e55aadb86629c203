"""Measuring two ways of one thing in turn, so that a noisy machine disturbs both alike."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from caption_ray.cluster import KEEP_MEMORY

_RAY_NICENESS = 15
"""What Ray starts its workers with where `RAY_worker_niceness` does not say otherwise."""


def keep_memory() -> None:
    """Start this program again, if need be, with the memory settings of a training worker, for all ways alike."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})


def yield_to_others() -> None:
    """Give this process the priority of Ray's workers, so that other programs of the machine disturb all ways alike."""
    os.nice(_RAY_NICENESS)


def now() -> float:
    """Return the time, seconds, when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run every way once to warm up, then all of them in turn `rounds` times; return the seconds of each run."""
    for run in ways.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = now()
            run()
            taken[name].append(now() - started)
    return taken


def figures_in_turn(ways: Sequence[str], rounds: int, figure: str) -> dict[str, list[float]]:
    """Run this program with `--way NAME` for every way, in turn, `rounds` times; return the figures that it reports.

    For ways that need a process of their own. Figures are rates: the more the better.
    """
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, *sys.argv, "--way", way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(float(json.loads(done.stdout.splitlines()[-1])[figure]))
    return found


def rate_ratio(rates: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times the rate of `slow` that of `fast` is: the median over rounds, as `ratio`."""
    return ratio(rates, fast, slow)


def ratio(taken: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times faster `fast` is than `slow`: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))


def report(result: Mapping[str, object]) -> None:
    """Print one JSON object, the benchmark's result."""
    sys.stdout.write(json.dumps(result) + "\n")

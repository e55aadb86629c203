"""The model without a service, the ceiling of all of them: `python benchmarks/bare_model.py --bundle B PICTURE...`.

The service's own `Captioner` on pictures that have been decoded beforehand, in batches of up to 16: one after the other
with all of torch's threads, and side by side with one thread each, on a GPU two. Prints pictures/s of both, and what
one picture's decoding takes, which no ceiling includes, no more than HTTP, queues and JSON.
"""

import argparse
import itertools
import os
import threading
import time
from pathlib import Path

import torch
from compare import report

from caption_ray.inference import Captioner

BATCH = 16


def rate(captioner: Captioner, batches: list[list], num_lanes: int, threads: int, seconds: float) -> float:
    """Return pictures/s of `num_lanes` threads, each with batches of its own and `threads` of torch's."""
    rates = [0.0] * num_lanes
    warm = threading.Barrier(num_lanes)

    def compute(lane: int) -> None:
        torch.set_num_threads(threads)
        for batch in batches:  # weights are laid out for each size of batch and number of threads
            captioner.caption(batch)
        warm.wait()
        count, started, now = 0, time.perf_counter(), 0.0
        for batch in itertools.cycle(batches):
            captioner.caption(batch)
            count, now = count + len(batch), time.perf_counter()
            if now - started >= seconds:
                break
        rates[lane] = count / (now - started)

    lanes = [threading.Thread(target=compute, args=(lane,)) for lane in range(num_lanes)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return sum(rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("pictures", nargs="+")
    arguments = parser.parse_args()
    captioner = Captioner.load(arguments.bundle, precision="auto")
    files = [Path(name).read_bytes() for name in arguments.pictures]
    started = time.perf_counter()
    squares = [captioner.decode_picture(file) for file in files]
    decode_s = (time.perf_counter() - started) / len(files)
    batches = [squares[first : first + BATCH] for first in range(0, len(squares), BATCH)]
    cores = len(os.sched_getaffinity(0))
    lanes = cores if captioner.device.type == "cpu" else 2
    torch.set_num_threads(cores)
    captions = [found[0].text for batch in batches for found in captioner.caption(batch)]
    report(
        {
            "together_per_s": rate(captioner, batches, 1, cores, arguments.seconds),
            "side_by_side_per_s": rate(captioner, batches, lanes, 1, arguments.seconds),
            "decode_ms": 1000 * decode_s,
            "captions": captions,
        }
    )


if __name__ == "__main__":
    main()

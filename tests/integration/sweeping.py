"""`jobs/tune.py` on drawn pictures, as a process, for tests of what happens to it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from caption_ray.train.stopping import STOP_VARIABLE
from caption_ray.tune.records import TrialRecord, read_trials

ROOT = Path(__file__).parents[2]
SPACE = (
    "--space.embedding-size", "16", "24", "--space.hidden-size", "24", "--space.attention-size", "8",
    "--space.learning-rate", "1e-3", "1e30", "--space.dropout", "0.1", "0.4", "--space.batch-size", "20",
    "--space.label-smoothing", "0", "0",
)  # fmt: skip
SEED = "17"
"""By it the second trial's learning rate is 2.9e27, whose weight decay overflows, and the third's 0.0028."""

SANE_RATES = ("--space.learning-rate", "1e-3", "1e-2")
"""With these no trial diverges, which Tune would log with its traceback."""

NUM_EPOCHS = 2


class Sweep:
    """The same command, as often as it takes."""

    def __init__(self, folder: Path, data: str, features: str) -> None:
        self.folder = folder / "runs" / "sweep"
        self.log = folder / "log.txt"
        self.stop_file = folder / "stop"
        self.command = [
            sys.executable, str(ROOT / "jobs" / "tune.py"), "quickstart", "--data", data, "--features", features,
            "--storage", str(folder / "runs"), "--name", "sweep", "--num-trials", "3", "--search", "random",
            "--seed", SEED, *SPACE, "--cpus-per-trial", "0.5", "--num-at-once", "2", "--stopping.grace-epochs", "1",
            "--stopping.reduction", "2", "--model.embedding-size", "24", "--model.hidden-size", "24",
            "--model.attention-size", "8", "--training.epochs", str(NUM_EPOCHS), "--training.select-by", "cider",
            "--optimizer.weight-decay", "0.1",
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, STOP_VARIABLE: str(self.stop_file)}
        with self.log.open("w") as log:
            return subprocess.Popen(
                self.command, stderr=log, stdout=subprocess.PIPE, start_new_session=True, env=environment
            )

    def trials(self) -> dict[int, TrialRecord]:
        return read_trials(str(self.folder))

    def wait_until(self, process: subprocess.Popen[bytes], holds: Callable[[dict[int, TrialRecord]], bool]) -> None:
        deadline = time.monotonic() + 240
        while not holds(self.trials()):
            assert process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.05)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def is_of(worker: psutil.Process, run: str) -> bool:
    """Tell a run's worker by the folder that Ray puts it into."""
    return Path(worker.cwd()).name == run


def has_epochs(trials: dict[int, TrialRecord], number: int, num_epochs: int) -> bool:
    return number in trials and len(trials[number].epochs) >= num_epochs

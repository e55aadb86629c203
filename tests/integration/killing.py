"""Ending a job as a power cut would."""

import contextlib
import os
import signal
import subprocess

import psutil


def kill_with_family(job: subprocess.Popen[bytes]) -> None:
    """Kill a job and all that it has started, itself first."""
    family = psutil.Process(job.pid).children(recursive=True)
    os.kill(job.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.communicate()

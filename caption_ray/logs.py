"""Logging for programs: called by jobs and workers, never on import."""

import importlib.util
import logging
import sys
from pathlib import Path


def configure_logging(level: int = logging.INFO) -> None:
    """Send this package's log records to stderr, one line each, leaving other libraries' levels alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    package_logger = logging.getLogger("caption_ray")
    package_logger.handlers[:] = [handler]
    package_logger.setLevel(level)
    package_logger.propagate = False


def quieten_ray_workers() -> None:
    """Silence, in a worker process of Ray, what is of no use to the person who reads a job's log."""
    for name in (
        # Asks the dashboard now and then, and warns each time that there is none.
        "ray.train.v2._internal.execution.controller.placement_group_cleaner",
        # Says once per process that progress bars are off, as they were set to be.
        "ray.data._internal.progress",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = ["ray.data._internal.execution.streaming_executor"]  # a line per epoch and data set
    ray_spec = importlib.util.find_spec("ray")
    if ray_spec is not None and ray_spec.origin is not None:
        # Each worker repeats all metrics after each epoch, through a logger that has its file's path as name (2.60).
        names.append(str(Path(ray_spec.origin).parent / "train/v2/_internal/execution/context.py"))
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)

"""Logging for programs: called by jobs and workers, never on import."""

import logging
import sys


def configure_logging(level: int = logging.INFO) -> None:
    """Send this package's log records to stderr, one line each, leaving other libraries' levels alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    package_logger = logging.getLogger("caption_ray")
    package_logger.handlers[:] = [handler]
    package_logger.setLevel(level)
    package_logger.propagate = False

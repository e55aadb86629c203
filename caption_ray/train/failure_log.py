"""What a person is told of workers that fail: Ray Train itself writes that into a file of its own alone."""

import logging
from collections import defaultdict
from collections.abc import Mapping

import ray.train

from caption_ray.logs import configure_logging

_NO_ROOM = "worker group startup timed out"

logger = logging.getLogger(__name__)


class FailureLog(ray.train.UserCallback):  # type: ignore[misc]
    """Says in the job's log which workers have failed, and why; Ray may start them again."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:  # noqa: ARG002
        """Be told by Ray Train, in its controller's process. worker_exceptions: by the workers' ranks."""
        configure_logging()
        workers: defaultdict[str, list[int]] = defaultdict(list)
        for rank, error in sorted(worker_exceptions.items()):
            workers[last_line(error)].append(rank)
        for reason, ranks in workers.items():
            logger.warning("worker(s) %s failed: %s", ", ".join(map(str, ranks)), reason)


def last_line(error: BaseException) -> str:
    """Return what an error says in the end: Ray's begin with where it was met, and with tracebacks."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else type(error).__name__
    if _NO_ROOM in last:  # Ray's advice is a longer time for each of four tries
        return (
            "there was no room for its workers for minutes: other work has the cluster's CPUs or GPUs, or a node is "
            "lost; try again when it is free, or ask for fewer workers (--num-workers, --min-workers)"
        )
    return last

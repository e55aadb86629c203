"""Where a replica on Ray Serve writes its log."""

import logging


def log_through_serve() -> None:
    """Have this package's records written where Serve writes a replica's own, in its form, with its request ids."""
    package, replica = logging.getLogger("caption_ray"), logging.getLogger("ray.serve")
    package.handlers[:] = replica.handlers
    package.setLevel(replica.level)
    package.propagate = False

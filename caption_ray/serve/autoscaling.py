"""By how much work Serve starts and ends captioner replicas."""

from ray.serve.config import AutoscalingContext

FURTHER_PICTURES = "further_pictures"
"""What a replica reports: the pictures in its hands beyond the first of each request."""


def by_pictures(context: AutoscalingContext) -> tuple[float, dict[str, object]]:
    """Return how many replicas there should be, and no state: as Serve's own policy, but that pictures count.

    A batch is one request to Serve. A replica is full of four of sixteen pictures, and would be taken for nearly idle.
    `target_ongoing_requests` is then the pictures that a replica should have in hand; bounds, factors and delays of
    the config apply as ever.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    further = context.aggregated_metrics.get(FURTHER_PICTURES, {})
    pictures = context.total_num_requests + sum(further.values())
    return pictures / context.config.get_target_ongoing_requests(), {}

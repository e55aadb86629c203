"""Replicas by the pictures that there are: a batch is one request to Serve."""

import asyncio

from serving import Service, load, statuses
from waiting import wait_until

BY_PICTURES = {"policy_function": "caption_ray.serve.autoscaling:by_pictures"}


def test_batches_start_a_replica_though_they_are_few_requests(service: Service, picture: bytes) -> None:
    """Two clients have two requests under way, of which a replica is to have six; and 32 pictures."""
    bounds = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 6}
    soon = {"upscale_delay_s": 1, "metrics_interval_s": 1, "look_back_period_s": 2}
    service.deploy(num_replicas="auto", autoscaling_config={**bounds, **soon, "policy": BY_PICTURES})
    assert len(service.replicas("CaptionerReplica")) == 1

    async def another_starts() -> None:
        await asyncio.to_thread(
            wait_until, lambda: len(service.replicas("CaptionerReplica")) == 2, 40, service.log.read_text
        )

    replies = load(service.url, picture, num_clients=2, seconds=0, meanwhile=another_starts, in_batches=16)
    assert statuses(replies) == {200: len(replies)}

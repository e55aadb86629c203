from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from caption_ray.serve.autoscaling import FURTHER_PICTURES, by_pictures


def context(num_replicas: int, num_requests: float, further: list[float]) -> AutoscalingContext:
    deployment = DeploymentID(name="CaptionerReplica")
    replicas = [ReplicaID(str(number), deployment) for number in range(len(further))]
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name="CaptionerReplica",
        app_name="captions",
        current_num_replicas=num_replicas,
        target_num_replicas=num_replicas or 2,
        running_replicas=replicas,
        total_num_requests=num_requests,
        total_queued_requests=0,
        aggregated_metrics={FURTHER_PICTURES: dict(zip(replicas, further, strict=True))} if further else {},
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=24),
    )


def test_a_picture_counts_wherever_it_came_in() -> None:
    assert by_pictures(context(1, 48, [0])) == (2.0, {})  # 48 requests of a picture each
    assert by_pictures(context(1, 3, [45])) == (2.0, {})  # 3 batches of 16
    assert by_pictures(context(2, 6, [45, 45])) == (4.0, {})
    assert by_pictures(context(2, 6, [])) == (0.25, {})  # nobody has reported yet


def test_none_are_started_where_none_are_wanted() -> None:
    assert by_pictures(context(0, 0, [])) == (2, {})

"""When Serve is told that a replica will not answer again."""

import asyncio
from types import SimpleNamespace

import pytest

from caption_ray.serve.captioner import CaptionerReplica

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


def check_health(engine: SimpleNamespace | None) -> None:
    asyncio.run(CaptionerReplica.func_or_class.check_health(SimpleNamespace(_engine=engine)))


def test_replica_that_has_yet_to_be_configured_or_computes_as_it_should_is_healthy() -> None:
    check_health(None)
    check_health(SimpleNamespace(is_running=True, busy_s=119.0, num_failures=2))


@pytest.mark.parametrize(
    ("is_running", "busy_s", "num_failures", "told"),
    [
        (False, 0.0, 0, "the thread that computes captions has ended"),
        (True, 121.0, 0, "a batch has been computed for 121 s and has not ended"),
        (True, 0.0, 3, "the last 3 batches and streams failed"),
    ],
)
def test_replica_that_will_not_answer_again_is_unhealthy(
    is_running: bool, busy_s: float, num_failures: int, told: str
) -> None:
    with pytest.raises(RuntimeError, match=told):
        check_health(SimpleNamespace(is_running=is_running, busy_s=busy_s, num_failures=num_failures))

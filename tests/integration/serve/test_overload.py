"""More clients than the service can take: who is turned away is told so, and nothing is left behind."""

import logging

import pytest
from serving import Service, load, median_s, statuses

logger = logging.getLogger(__name__)


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_times_too_many_clients(service: Service, picture: bytes, seconds: int) -> None:
    # The model takes 8 requests and 8 wait.
    load(service.url, picture, num_clients=16, seconds=2)
    before = load(service.url, picture, num_clients=1, seconds=2)
    assert statuses(before) == {200: len(before)}

    load(service.url, picture, num_clients=8 * 16, seconds=seconds / 4)
    early = service.private_bytes()
    replies = load(service.url, picture, num_clients=8 * 16, seconds=seconds)
    grown = service.private_bytes() - early
    # The model's process takes and gives back some 20 MB at a time; what is left behind stays, whatever follows.
    for _ in range(5):
        if grown >= 40 << 20:
            load(service.url, picture, num_clients=8 * 16, seconds=seconds / 4)
            grown = min(grown, service.private_bytes() - early)

    counts = statuses(replies)
    assert set(counts) == {200, 503}
    assert counts[200] > 5 * seconds
    for reply in replies:
        if reply.status == 503:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.body["error"]["code"] == "overloaded"
    # Whoever is taken in is answered soon: the queue is short.
    assert max(reply.seconds for reply in replies if reply.status == 200) < 10
    assert grown < 40 << 20

    for _ in range(5):  # what is left behind stays, whatever follows
        after = load(service.url, picture, num_clients=1, seconds=2)
        assert statuses(after) == {200: len(after)}
        if median_s(after) < 1.5 * median_s(before) + 0.01:
            break
    assert median_s(after) < 1.5 * median_s(before) + 0.01
    logger.info("%d s, 128 clients: %s, memory %+.1f MiB", seconds, dict(counts), grown / 2**20)
    logger.info("one client: %.1f ms before, %.1f ms after", 1e3 * median_s(before), 1e3 * median_s(after))


def test_too_many_batches_are_refused_by_their_pictures(service: Service, picture: bytes) -> None:
    """Four of them are fewer requests than fit, and twice the pictures that the replica is told to take."""
    service.deploy(user_config={"max_batch_size": 4, "max_queued": 32})
    already_logged = len(service.log.read_text())
    replies = load(service.url, picture, num_clients=4, seconds=6, in_batches=16)
    counts = statuses(replies)
    assert set(counts) == {200, 503}
    assert all(len(reply.body["results"]) == 16 for reply in replies if reply.status == 200)
    assert {reply.body["error"]["code"] for reply in replies if reply.status == 503} == {"overloaded"}
    assert max(reply.seconds for reply in replies if reply.status == 200) < 8
    assert "Traceback" not in service.log.read_text()[already_logged:]
    assert statuses(load(service.url, picture, num_clients=2, seconds=1, in_batches=16)).keys() == {200}
    logger.info("four clients with batches of 16, 32 pictures taken: %s", dict(counts))

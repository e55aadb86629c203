"""Replicas that die, and clients that hang up or dawdle, are nobody else's concern."""

import asyncio
import logging
import os
import random
import signal
import socket
import time

import aiohttp
import pytest
from serving import BYTES, Service, load, median_s, statuses
from waiting import wait_until

logger = logging.getLogger(__name__)


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_replica_is_noticed_by_no_client_and_replaced(service: Service, picture: bytes, seconds: int) -> None:
    service.deploy(num_replicas=2)
    wait_until(lambda: len(service.replicas("CaptionerReplica")) == 2, 60)
    before = service.replicas("CaptionerReplica")
    killed = sorted(before)[0]

    async def kill() -> None:
        await asyncio.sleep(seconds / 3)
        os.kill(before[killed], signal.SIGKILL)

    replies = load(service.url, picture, num_clients=4, seconds=seconds, meanwhile=kill)
    assert statuses(replies) == {200: len(replies)}
    assert len(replies) > 5 * seconds
    started = time.monotonic()
    wait_until(lambda: len({*service.replicas("CaptionerReplica")} - {killed}) == 2, 60)
    logger.info("%d requests of 4 clients in %d s, one of two replicas killed: all 200", len(replies), seconds)
    slowest = max(reply.seconds for reply in replies)
    logger.info("slowest %.2f s; two replicas again %.0f s after the load", slowest, time.monotonic() - started)


def test_streams_outlive_their_replica(service: Service, picture: bytes) -> None:
    service.deploy(num_replicas=2)
    wait_until(lambda: len(service.replicas("CaptionerReplica")) == 2, 60)
    before = service.replicas("CaptionerReplica")
    killed = sorted(before)[0]
    found: list[tuple[int, str]] = []

    async def listen(session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            async with session.post(f"{service.url}/v1/captions/stream", data=picture, headers=BYTES) as answer:
                found.append((answer.status, (await answer.read()).decode()))

    async def run() -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            tasks = [asyncio.create_task(listen(session, time.monotonic() + 8)) for _ in range(8)]
            await asyncio.sleep(3)
            os.kill(before[killed], signal.SIGKILL)
            await asyncio.gather(*tasks)

    asyncio.run(run())
    assert {status for status, _ in found} == {200}
    assert len({text.rpartition("event: ")[0] for _, text in found}) == 1  # each word once, whoever said it
    assert all(text.rpartition("event: ")[2].startswith("caption") for _, text in found)
    assert len(found) > 40
    logger.info("%d streams of 8 clients, one of two replicas killed: all whole", len(found))
    wait_until(lambda: len({*service.replicas("CaptionerReplica")} - {killed}) == 2, 60)


def test_dawdling_and_vanishing_clients_hold_up_no_one(service: Service, picture: bytes) -> None:
    alone = load(service.url, picture, num_clients=2, seconds=2)
    head = (
        f"POST /v1/captions HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(picture)}\r\n\r\n"
    ).encode()

    async def dawdle() -> bytes:
        """Send a byte a second until there is an answer, and return that."""
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(head)
        answer = asyncio.create_task(reader.read(4096))
        for byte in picture[:10]:
            writer.write(bytes([byte]))
            if (await asyncio.wait({answer}, timeout=1))[0]:
                break
        writer.close()
        return await answer

    async def vanish() -> None:
        """Ask, and hang up without reading the answer; or in the middle of the picture."""
        for index in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(head + (picture if index % 2 else picture[:100]))
            await writer.drain()
            writer.transport.abort()
            await asyncio.sleep(0.1)

    answers: list[bytes] = []

    async def all_of_them() -> None:
        done = await asyncio.gather(*(dawdle() for _ in range(30)), vanish())
        answers.extend(answer for answer in done if answer is not None)

    replies = load(service.url, picture, num_clients=2, seconds=6, meanwhile=all_of_them)
    assert statuses(replies) == {200: len(replies)}
    assert median_s(replies) < 2 * median_s(alone) + 0.02
    assert [answer.split(b" ")[1] for answer in answers] == [b"408"] * 30
    logger.info("median %.1f ms alone, %.1f ms among slow ones", 1e3 * median_s(alone), 1e3 * median_s(replies))


def test_streams_that_clients_leave_are_no_faults_in_the_log(service: Service, picture: bytes) -> None:
    before = len(service.log.read_text())

    async def leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST /v1/captions/stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n"
        writer.write(head.encode() + picture)
        await asyncio.sleep(random.uniform(0.005, 0.05))
        writer.transport.abort()

    async def all_leave() -> None:
        for _ in range(25):
            await asyncio.gather(*(leave() for _ in range(4)))

    asyncio.run(all_leave())
    (reply,) = load(service.url, picture, num_clients=1, seconds=0.01)
    assert reply.status == 200
    time.sleep(1)
    told = service.log.read_text()[before:]
    assert told.count('"route": "/v1/captions/stream"') > 50
    assert "Task exception was never retrieved" not in told


def test_client_that_hangs_up_early_is_taken_out_of_the_queue(service: Service, picture: bytes) -> None:
    """After a burst of requests whose clients are gone, the next one is not behind them."""
    head = f"POST /v1/captions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(picture)}\r\n\r\n"
    (alone,) = load(service.url, picture, num_clients=1, seconds=0.01)
    sockets = []
    for _ in range(60):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.sendall(head.encode() + picture)
        sockets.append(connection)
    for connection in sockets:
        connection.close()
    time.sleep(0.5)
    replies = load(service.url, picture, num_clients=1, seconds=0.5)
    assert replies[-1].status == 200
    assert replies[-1].seconds < 3 * alone.seconds + 0.1

"""Replicas that die, and clients that hang up or dawdle, are nobody else's concern."""

import asyncio
import os
import signal
import socket
import time

import pytest
from serving import Service, load, median_s, statuses, wait_until


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
    print(
        f"\n{len(replies)} requests of 4 clients in {seconds} s, one replica killed: all 200, slowest "
        f"{max(reply.seconds for reply in replies):.2f} s; two replicas again {time.monotonic() - started:.0f} s later"
    )


def test_dawdling_and_vanishing_clients_hold_up_no_one(service: Service, picture: bytes) -> None:
    alone = load(service.url, picture, num_clients=2, seconds=2)
    head = (
        f"POST /v1/captions HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(picture)}\r\n\r\n"
    ).encode()

    async def dawdle(num_sent: int = 6) -> bytes:
        """Send a byte a second, and return what is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(head)
        for byte in picture[:num_sent]:
            writer.write(bytes([byte]))
            await asyncio.sleep(1)
        answer = await asyncio.wait_for(reader.read(4096), 20)
        writer.close()
        return answer

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
    print(f"\nmedian {median_s(alone) * 1e3:.1f} ms alone, {median_s(replies) * 1e3:.1f} ms among 30 slow and 40 vanishing")


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

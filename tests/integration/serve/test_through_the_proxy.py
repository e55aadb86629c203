"""What the app promises of bodies and streams, through Ray's proxy, which passes on both."""

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator

import aiohttp
import pytest
from serving import BYTES, Service, load

_MAX_BYTES = 10 << 20


def chunks(num_bytes: int) -> Iterator[bytes]:
    for _ in range(0, num_bytes, 1 << 16):
        yield bytes(1 << 16)


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "code"),
    [
        ("?beam_width=0", b"x", "image/png", 400, "invalid_query"),
        ("", b"--b--", "multipart/form-data; boundary=b", 400, "malformed_request"),
        ("", bytes(_MAX_BYTES + 1), "image/png", 413, "too_large"),
        ("", _MAX_BYTES + 1, "image/png", 413, "too_large"),
        ("", b"a man on a horse", "image/png", 415, "not_a_picture"),
        ("", b"\x89PNG\r\n\x1a\n" + bytes(40), "image/png", 422, "undecodable_picture"),
    ],
    ids=["query", "form", "length", "chunks", "text", "broken"],
)
def test_errors_are_the_apps(service: Service, path: str, body: bytes | int, kind: str, status: int, code: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    sent = chunks(body) if isinstance(body, int) else body  # the former without a Content-Length
    with contextlib.suppress(ConnectionError):  # closed under its sending, after the answer
        connection.request("POST", f"/v1/captions{path}", sent, {"Content-Type": kind})
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert error["request_id"] == answer.headers["x-request-id"]
    connection.close()


def send_without_end(port: int) -> tuple[int, bytes]:
    """Send chunks until there is an answer; return how many bytes that took, and the answer's begin."""
    sent, end, answer = 0, time.monotonic() + 30, b""
    chunk = b"400\r\n" + bytes(1 << 10) + b"\r\n"
    rest = memoryview(b"")  # of a chunk that was sent in part
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sender:
        sender.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sender.setblocking(False)
        while not answer and time.monotonic() < end:
            try:
                rest = rest or memoryview(chunk)
                num_bytes = sender.send(rest)
                rest, sent = rest[num_bytes:], sent + num_bytes
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:  # closed: the answer, if it came first, is still to be read
                end = 0
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                answer = sender.recv(65536)
    return sent, answer


def test_upload_without_end_is_stopped(service: Service) -> None:
    """The app reads no more than it takes. Ray's proxy reads as fast as it can, until then, and keeps nothing."""
    warm_up = [send_without_end(service.port) for _ in range(15)]  # malloc keeps room for what comes at once
    before = service.private_bytes()
    found = [send_without_end(service.port) for _ in range(20)]
    grown = service.private_bytes() - before
    assert [answer[:13] for _, answer in found] == [b"HTTP/1.1 413 "] * 20, found
    sent = [num_bytes for num_bytes, _ in found]
    assert max(sent) < 500 << 20
    for _ in range(4):  # what is kept stays, whatever follows
        if grown >= sum(sent) / 4:
            found = [send_without_end(service.port) for _ in range(5)]
            grown = min(grown, service.private_bytes() - before)
    assert grown < sum(sent) / 4, (grown, sent, warm_up)


def test_words_arrive_as_they_are_found(service: Service, picture: bytes) -> None:
    """While others are captioned each step of a stream waits for a batch of theirs, so that what is kept back shows."""
    arrivals: list[tuple[float, bytes]] = []

    async def listen() -> None:
        await asyncio.sleep(1)
        async with aiohttp.ClientSession() as session:
            url = f"{service.url}/v1/captions/stream"
            async with session.post(url, data=picture, headers=BYTES) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                async for line in answer.content:
                    if line.startswith(b"event: "):
                        arrivals.append((time.monotonic(), line.strip()))  # noqa: PERF401  # each at its time

    service.deploy(max_ongoing_requests=16)  # so that the stream finds its place among more clients than a batch has
    load(service.url, picture, num_clients=12, seconds=4, meanwhile=listen)
    times, names = zip(*arrivals, strict=True)
    assert names == (*[b"event: word"] * (len(names) - 1), b"event: caption")
    assert len(names) >= 2
    assert times[-1] - times[0] > 0.01, arrivals

"""Connections on which nothing moves, under uvicorn as `caption_ray.serve.local` runs it."""

import logging
import socket
import sys
import threading
import time

import pytest
from live import head, running
from odd_pictures import png
from stand_in import Chatty, StandIn

from caption_ray.serve.app import create_app
from caption_ray.serve.head_timeout import HeadTimeoutProtocol
from caption_ray.serve.local import CONNECTION_OPTIONS
from caption_ray.serve.schemas import Limits

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Hasty(HeadTimeoutProtocol):
    HEAD_TIMEOUT_S = 0.4


class Patient(HeadTimeoutProtocol):
    HEAD_TIMEOUT_S = 1.0


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost:", HEAD + b"GET /hea"])
def test_connection_without_a_whole_head_is_closed(sent: bytes) -> None:
    with running(create_app(StandIn()), http=Hasty) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            begun = time.monotonic()
            connection.sendall(sent)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert 0.3 < time.monotonic() - begun < 5
    assert answer.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


def test_each_request_has_the_whole_time() -> None:
    with (
        running(create_app(StandIn()), http=Patient) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        for _ in range(2):  # together longer
            connection.sendall(HEAD[:20])
            time.sleep(0.6)
            connection.sendall(HEAD[20:])
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                part = connection.recv(65536)
                assert part
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
def test_connection_of_a_client_that_does_not_read_ends() -> None:
    ended = threading.Event()

    class Impatient(HeadTimeoutProtocol):
        UNREAD_TIMEOUT_S = 0.5

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    with (
        running(create_app(Chatty(), Limits(deadline_s=0.5)), http=Impatient) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as deaf,
    ):
        deaf.sendall(head("/v1/captions/stream", f"Content-Length: {len(png())}") + png())
        assert ended.wait(20)  # while it is still there


def test_asking_for_another_protocol_gets_round_no_limit() -> None:
    with (
        running(create_app(StandIn(), Limits(body_timeout_s=0.5)), **CONNECTION_OPTIONS) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        asking = ("Upgrade: websocket", "Connection: Upgrade", "Content-Length: 5")
        connection.sendall(head("/v1/captions", *asking))
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_what_is_no_chunk_after_an_early_answer_ends_the_connection_and_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="asyncio"),
        running(create_app(StandIn()), **CONNECTION_OPTIONS) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        connection.sendall(head("/nope", "Transfer-Encoding: chunked"))
        answer = b""
        while b"not_found" not in answer:
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404")
        connection.sendall(b"zzz\r\n")
        assert not connection.recv(65536)
    assert not caplog.records

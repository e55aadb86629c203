"""Connections on which no request comes, under uvicorn as `caption_ray.serve.local` runs it."""

import socket
import time

import pytest
from live import running
from stand_in import StandIn

from caption_ray.serve.app import create_app
from caption_ray.serve.head_timeout import HeadTimeoutProtocol

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Hasty(HeadTimeoutProtocol):
    HEAD_TIMEOUT_S = 0.4


class Patient(HeadTimeoutProtocol):
    HEAD_TIMEOUT_S = 2.0


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
            time.sleep(1.2)
            connection.sendall(HEAD[20:])
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                part = connection.recv(65536)
                assert part
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")

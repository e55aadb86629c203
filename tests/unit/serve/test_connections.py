"""Clients that are slow, hang up or send without end, over real connections."""

import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from live import client_of, head, running
from odd_pictures import png
from stand_in import Chatty, StandIn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from caption_ray.serve.app import create_app
from caption_ray.serve.lingering import LingerMiddleware
from caption_ray.serve.metrics import ProcessExporter, ServiceMetrics
from caption_ray.serve.schemas import Limits


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def receive(connection: socket.socket, until: bytes = b"\r\n\r\n") -> bytes:
    """Return what comes up to there, and perhaps more: head and body come apart."""
    answer = b""
    while until not in answer and (part := connection.recv(65536)):
        answer += part
    return answer


def eventually(holds: Callable[[], bool], within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float:
    assert isinstance(metrics.exporter, ProcessExporter)
    return metrics.exporter.registry.get_sample_value(name, labels) or 0.0


def test_a_byte_at_a_time_is_cut_off_and_holds_up_no_one() -> None:
    with client_of(StandIn(), Limits(body_timeout_s=0.5)) as client, connect(client) as slow:
        slow.sendall(head("/v1/captions", "Content-Length: 1000"))
        begun = time.monotonic()
        stop = threading.Event()

        def trickle() -> None:
            try:
                while not stop.wait(0.05):
                    slow.sendall(b"x")
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        while time.monotonic() < begun + 0.3:
            assert client.post("/v1/captions", content=png()).elapsed.total_seconds() < 0.5
        answer = receive(slow, until=b'"code":"body_timeout"')
        stop.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer
    assert b"connection: close" in answer
    assert 0.45 < time.monotonic() - begun < 5


def test_declared_length_over_the_limit_is_refused_before_the_body() -> None:
    metrics = ServiceMetrics()
    with client_of(StandIn(), Limits(max_bytes=1000), metrics=metrics) as client, connect(client) as sender:
        sender.sendall(head("/v1/captions", "Content-Length: 1001"))
        answer = receive(sender)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        # Done for the service, though the connection is still open for what the client may send.
        eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 0, within_s=1)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("POST /v1/captions HTTP/1.1",), b"413"),
        (("POST /v1/captions/stream HTTP/1.1",), b"413"),
        (("POST /v1/captions?beam_width=0 HTTP/1.1",), b"400"),
        (("PUT /v1/captions HTTP/1.1",), b"405"),
        (("POST /v2 HTTP/1.1",), b"404"),
    ],
)
@pytest.mark.parametrize(("is_chunked", "http"), [(False, "httptools"), (True, "httptools"), (False, "h11")])
def test_client_that_reads_when_it_has_sent_all_gets_the_answer(
    lines: tuple[str, ...], status: bytes, is_chunked: bool, http: str
) -> None:
    """As browsers do: of a connection that is closed under their sending they have no answer at all."""
    num_bytes = 6_000_000  # more than the sockets' buffers hold
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {num_bytes}"
    body = bytes(num_bytes)
    if is_chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (num_bytes, body)
    app = create_app(StandIn(), Limits(max_bytes=100_000))
    with running(app, http=http) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as sender:
        sender.sendall("\r\n".join((*lines, "Host: x", length, "", "")).encode() + body)
        answer = receive(sender, until=b"}}")
        assert answer.startswith(b"HTTP/1.1 %b " % status)
        assert b"connection: close" in answer
        assert sender.recv(1) == b""


@pytest.mark.parametrize(("max_s", "max_bytes"), [(0.3, 1 << 40), (20.0, 1_000_000)])
def test_who_goes_on_sending_is_cut_off_in_time(max_s: float, max_bytes: int) -> None:
    async def refuse(_: Request) -> Response:
        return Response(status_code=413)

    app = Starlette(
        routes=[Route("/v1/captions", refuse, methods=["POST"])],
        middleware=[Middleware(LingerMiddleware, max_s=max_s, max_bytes=max_bytes)],
    )
    with running(app) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as sender:
        sender.sendall(head("/v1/captions", "Transfer-Encoding: chunked"))
        begun = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012
            while time.monotonic() < begun + 10:
                sender.sendall(b"1000\r\n" + bytes(0x1000) + b"\r\n")
    assert time.monotonic() - begun < 5


def test_chunks_without_end_are_stopped_at_the_limit() -> None:
    with client_of(StandIn(), Limits(max_bytes=100_000)) as client, connect(client) as sender:
        sender.sendall(head("/v1/captions", "Transfer-Encoding: chunked"))
        sent = 0
        sender.setblocking(False)
        answer = b""
        while not answer and sent < 50_000_000:
            try:
                sent += sender.send(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
            try:
                answer = sender.recv(65536)
            except BlockingIOError:
                continue
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 20_000_000  # the rest was still in the sockets' buffers


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions/stream"])
def test_work_of_a_client_that_hangs_up_is_dropped(path: str) -> None:
    backend, metrics = StandIn(seconds=30), ServiceMetrics()
    with client_of(backend, metrics=metrics) as client:
        with connect(client) as gone:
            gone.sendall(head(path, f"Content-Length: {len(png())}") + png())
            eventually(lambda: len(backend.calls) == 1)
        eventually(lambda: backend.num_cancelled == 1)
        eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 0)
    assert value(metrics, "caption_ray_requests_total", route=path, method="POST", status="499") == 1
    assert value(metrics, "caption_ray_captions_total", outcome="client_gone") == 1


def test_hanging_up_amid_the_body_is_no_fault() -> None:
    metrics = ServiceMetrics()
    with client_of(StandIn(), metrics=metrics) as client:
        with connect(client) as gone:
            gone.sendall(head("/v1/captions", "Content-Length: 1000") + b"x")
            eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 1)
        eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 0)
    assert value(metrics, "caption_ray_requests_total", route="/v1/captions", method="POST", status="499") == 1


def test_deadline() -> None:
    backend = StandIn(seconds=30)
    with client_of(backend, Limits(deadline_s=0.2)) as client:
        answer = client.post("/v1/captions", content=png())
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert answer.json()["error"]["limit"] == 0.2
        assert backend.num_cancelled == 1


def test_deadline_within_a_stream() -> None:
    backend = StandIn(seconds=0.3)
    with client_of(backend, Limits(deadline_s=0.5)) as client:
        answer = client.post("/v1/captions/stream", content=png())
    assert answer.status_code == 200
    assert answer.text.count("event: word") == 1
    error = json.loads(answer.text.split("event: error\ndata: ")[1])["error"]
    assert (error["code"], error["message"], error["limit"]) == ("deadline_exceeded", "No answer within 0.5 s.", 0.5)
    assert backend.num_cancelled == 1


def test_client_that_does_not_read_is_given_up() -> None:
    backend, metrics = Chatty(), ServiceMetrics()
    with client_of(backend, Limits(deadline_s=0.5), metrics=metrics) as client, connect(client) as deaf:
        deaf.sendall(head("/v1/captions/stream", f"Content-Length: {len(png())}") + png())
        eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 1)
        eventually(lambda: value(metrics, "caption_ray_requests_in_flight") == 0)
        eventually(lambda: backend.num_cancelled == 1)
        assert client.post("/v1/captions", content=png()).status_code == 200
    assert value(metrics, "caption_ray_captions_total", outcome="client_gone") == 1


def test_connection_serves_on_after_errors(client: httpx.Client) -> None:
    for body, status in ((b"x", 415), (png(), 200), (png()[:60], 422), (png(), 200)):
        assert client.post("/v1/captions", content=body).status_code == status


def test_memory_for_bodies_is_free_again_once_they_are_decoded() -> None:
    with client_of(StandIn(), max_buffered_bytes=len(png())) as client:
        for body, status in ((png(), 200), (png(), 200), (png()[:60], 422), (png(), 200)):
            assert client.post("/v1/captions", content=body).status_code == status

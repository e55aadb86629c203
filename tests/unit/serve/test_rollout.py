"""Waiting for a bundle to answer, on a stand-in that says what replicas would."""

import itertools
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from caption_ray.errors import RunError
from caption_ray.serve import rollout
from caption_ray.serve.rollout import NUM_ANSWERS, NotToldError, deploy, roll_out, wait_for_model

OLD, NEW = {"id": "old"}, {"id": "new"}


@contextmanager
def answering(answers: Iterator[object], status: int = 200) -> Iterator[str]:
    """Serve one answer after another, whatever is asked, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(next(answers)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_POLL_INTERVAL_S", 0.01), ("_SAME_REFUSAL_S", 0.3), ("_TIMEOUT_S", 1.5)):
        monkeypatch.setattr(rollout, name, seconds)


def test_one_replica_is_not_all() -> None:
    asked = itertools.chain([OLD, *[NEW] * (NUM_ANSWERS - 1), OLD], [NEW] * NUM_ANSWERS)
    with answering(asked) as service:
        wait_for_model(service, "new")
    assert list(asked) == []
    with answering(itertools.cycle([NEW, OLD])) as service, pytest.raises(RunError, match="no answer from the new"):
        wait_for_model(service, "new")


def test_refusal_in_the_words_of_an_earlier_one_counts_when_it_stays() -> None:
    refusing = {**OLD, "refused": "damaged"}
    with answering(itertools.chain([refusing, OLD], itertools.repeat(NEW))) as service:
        wait_for_model(service, "new", refused_before={"damaged"})
    with answering(itertools.repeat(refusing)) as service:
        with pytest.raises(RunError, match="refuses the new bundle, and goes on with its old one: damaged"):
            wait_for_model(service, "new", refused_before={"absent", "cut off"})
        with pytest.raises(RunError, match="refuses the new bundle"):
            wait_for_model(service, "new", refused_before={"damaged"})


def test_a_service_that_wants_a_key_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(itertools.repeat({}), status=401) as service:
        monkeypatch.delenv("CAPTION_RAY_API_KEYS", raising=False)
        with pytest.raises(RunError, match=r"/v1/model answers 401: set CAPTION_RAY_API_KEYS here too; it asks for a"):
            wait_for_model(service, "new")
        monkeypatch.setenv("CAPTION_RAY_API_KEYS", "barley")
        with pytest.raises(RunError, match="it does not know the first key in it"):
            wait_for_model(service, "new")


def test_a_service_that_wants_a_key_is_not_told_of_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    monkeypatch.delenv("CAPTION_RAY_API_KEYS", raising=False)
    monkeypatch.setattr(rollout, "deploy", lambda *_: pytest.fail("has deployed"))
    with answering(itertools.repeat({}), status=401) as service:
        port = service.rpartition(":")[2]
        config.write_text(
            f"http_options: {{port: {port}}}\napplications: [{{deployments: [{{name: CaptionerReplica}}]}}]"
        )
        with pytest.raises(NotToldError, match="answers 401"):
            roll_out(str(config), "http://127.0.0.1:1", "new")


def test_a_service_here_is_not_asked_through_a_proxy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(itertools.repeat(NEW)) as service:
        wait_for_model(service, "new")


def test_applications_of_others_are_not_ended(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("applications: [{name: captions, deployments: []}]")
    sources = {"captions": "declarative", "search": "declarative", "notebook": "imperative"}
    found = {"applications": {name: {"source": source} for name, source in sources.items()}}
    with (
        answering(itertools.repeat(found)) as dashboard,
        pytest.raises(NotToldError, match="would end what else is deployed there: search; deploy from a config that"),
    ):
        deploy(str(config), dashboard)
    with answering(itertools.repeat([])) as dashboard, pytest.raises(NotToldError, match="does not say what it serves"):
        deploy(str(config), dashboard)
    with pytest.raises(NotToldError, match="does not say what it serves: nonnumeric port"):
        deploy(str(config), "http://127.0.0.1:8265x")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # as Ray's other ports, which do not speak HTTP/1.1
        thread = threading.Thread(target=_greet, args=(listener,))
        thread.start()
        with pytest.raises(NotToldError, match="does not say what it serves"):
            deploy(str(config), f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def _greet(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0")


def test_service_on_all_interfaces_is_where_its_dashboard_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        "http_options: {host: 0.0.0.0, port: 81}\n"
        "applications: [{route_prefix: /c, deployments: [{name: CaptionerReplica}]}]"
    )
    waited: list[object] = []
    monkeypatch.setattr(rollout, "_model", lambda _: {"id": "old", "refused": "damaged"})
    monkeypatch.setattr(rollout, "deploy", lambda *_: None)
    monkeypatch.setattr(rollout, "wait_for_model", lambda *asked: waited.append(asked))
    roll_out(str(config), "http://head:8265", "new")
    assert waited == [("http://head:81/c", "new", {"damaged"})]


@pytest.mark.parametrize(("mode", "sent"), [(None, ("Bearer secret", "token")), ("disabled", (None, "disabled"))])
def test_deploying_sends_the_clusters_token_and_tells_what_failed(
    mode: str | None, sent: tuple[str | None, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("applications: []")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    told: list[str | None] = []

    def get(_: str, headers: dict[str, str]) -> dict[str, object]:
        told.append(headers.get("Authorization"))
        return {"applications": {}}

    def run(_: list[str], *, env: dict[str, str], **__: object) -> SimpleNamespace:
        told.append(env.get("RAY_AUTH_MODE"))
        return SimpleNamespace(returncode=1, stderr="Traceback\nError: no such import\n\n")

    monkeypatch.setattr(rollout, "_get", get)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RunError, match=r"failed: Error: no such import$"):
        deploy(str(config), "http://head:8265")
    assert tuple(told) == sent

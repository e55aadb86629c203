import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import client_of, running
from odd_pictures import png
from stand_in import StandIn
from starlette.applications import Starlette
from starlette.routing import Mount

from caption_ray.errors import UsageError
from caption_ray.serve.app import create_app
from caption_ray.serve.middleware import SECURITY_HEADERS, api_keys_from_environment

KEYS = ("first-key-of-two", "second-kéy")


@pytest.fixture(scope="module")
def locked() -> Iterator[httpx.Client]:
    with client_of(StandIn(), api_keys=KEYS) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/docs.css"])
def test_pages_and_health_need_no_key(locked: httpx.Client, path: str) -> None:
    assert locked.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/v1/captions", "/absent", "/docs/", "/docs/../v1/model"])
def test_the_rest_needs_one(locked: httpx.Client, path: str) -> None:
    answer = locked.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [key.encode() for key in KEYS])
def test_each_key_opens(locked: httpx.Client, key: bytes) -> None:
    for headers in ({b"Authorization": b"Bearer " + key}, {b"authorization": b"bearer " + key}, {b"X-API-Key": key}):
        assert locked.post("/v1/captions", content=png(), headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["first-key-of-tw", "first-key-of-two2", "first-key-of-two,second", "\xff"])
def test_other_keys_do_not(locked: httpx.Client, key: str) -> None:
    headers = {b"Authorization": b"Bearer " + key.encode("latin-1")}
    assert locked.get("/v1/model", headers=headers).status_code == 401
    assert locked.get("/v1/model", headers={"Authorization": "Basic Zmlyc3Qta2V5LW9mLXR3bw=="}).status_code == 401


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTION_RAY_API_KEYS", raising=False)
    assert api_keys_from_environment() == []
    monkeypatch.setenv("CAPTION_RAY_API_KEYS", " a, ,b,")
    assert api_keys_from_environment() == ["a", "b"]


@pytest.mark.parametrize("value", ["", " , ", ","])
def test_keys_that_are_none_do_not_open_the_service(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CAPTION_RAY_API_KEYS", value)
    with pytest.raises(UsageError, match="CAPTION_RAY_API_KEYS is set and has no key"):
        api_keys_from_environment()


@pytest.mark.parametrize("key", ["schl\u00fcssel", "key-\u20ac", "a\tb"])
def test_keys_that_clients_would_send_in_different_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("CAPTION_RAY_API_KEYS", f"fine,{key}")
    with pytest.raises(UsageError, match="beyond ASCII's printable ones") as refused:
        api_keys_from_environment()
    assert key not in str(refused.value)


@pytest.mark.parametrize("path", ["/", "/docs", "/static/docs.css", "/absent", "/v1/model"])
def test_security_headers_are_everywhere(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize("asked", ["a-b_c.D9", "x" * 64])
def test_sane_request_id_is_taken_over(client: httpx.Client, asked: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": asked}).headers["x-request-id"] == asked


@pytest.mark.parametrize("asked", ["", "x" * 65, "a b", 'a"b', "é"])
def test_other_request_ids_are_made_anew(client: httpx.Client, asked: str) -> None:
    answer = client.get("/healthz", headers={b"X-Request-ID": asked.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def requests_logged(caplog: pytest.LogCaptureFixture, of: str, num: int) -> list[dict[str, Any]]:
    """Return the access log's lines of a request's name, once there are ``num``: each comes after its answer."""
    deadline = time.monotonic() + 10
    while True:
        logged = [json.loads(r.getMessage()) for r in caplog.records if r.name == "caption_ray.serve.access"]
        lines = [line for line in logged if line["request_id"] == of]  # a line of an earlier test may come late
        if len(lines) >= num or time.monotonic() > deadline:
            return lines
        time.sleep(0.01)


def test_a_line_of_json_for_each_request(locked: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "Zyxwv"  # stands for what must be in no log: in file names, keys, content, query
    with caplog.at_level(logging.DEBUG):
        headers = {"X-API-Key": KEYS[0], "X-Request-ID": "mine"}
        picture = png() + secret.encode()
        locked.post("/v1/captions", files={"p": (f"{secret}.png", picture)}, headers=headers)
        locked.post(f"/v1/captions?{secret}=1", content=secret.encode(), headers=headers)
        locked.post("/v1/captions", content=secret.encode(), headers=headers)
        for path in (f"/{secret}", "/v1/model", f"/v1/captions?{secret}", f"/metrics/{secret}"):
            locked.get(path, headers={"Authorization": f"Bearer {secret}", "X-Request-ID": "mine"})
        locked.get(f"/static/{secret}", headers={"X-Request-ID": "mine"})
        lines = requests_logged(caplog, of="mine", num=8)
    assert [(line["route"], line["status"], line["code"]) for line in lines] == [
        ("/v1/captions", 200, None),
        ("/v1/captions", 400, "invalid_query"),
        ("/v1/captions", 415, "not_a_picture"),
        ("other", 401, "unauthorized"),
        ("/v1/model", 401, "unauthorized"),
        ("/v1/captions", 401, "unauthorized"),
        ("other", 401, "unauthorized"),
        ("/static", 404, "not_found"),
    ]
    assert (lines[0]["picture_bytes"], lines[0]["picture_pixels"], lines[0]["pictures"]) == (len(picture), 1200, 1)
    assert lines[0]["model_id"] == "f" * 64
    assert lines[0]["ms"] > 0
    # The client and the server log too: paths and queries, as they are set to in this test.
    theirs = ("http", "uvicorn")
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith(theirs))
    assert secret not in ours
    assert KEYS[0] not in ours


def test_fault_is_logged_with_its_request(caplog: pytest.LogCaptureFixture) -> None:
    with client_of(StandIn([RuntimeError("boom")])) as client, caplog.at_level(logging.INFO):
        client.post("/v1/captions", content=png(), headers={"X-Request-ID": "mine"})
    (fault,) = [record for record in caplog.records if record.exc_info]
    assert fault.getMessage() == "request mine failed"


def test_below_a_prefix_the_same_is_open_and_named_alike(caplog: pytest.LogCaptureFixture) -> None:
    """As where Serve has the application below a `route_prefix`, which is in the path too."""
    app = create_app(StandIn(), api_keys=KEYS)
    outer = Starlette(routes=[Mount("/below", app=app)])
    with caplog.at_level(logging.INFO), running(outer) as port:
        statuses = [httpx.get(f"http://127.0.0.1:{port}/below{path}").status_code for path in ("/", "/v1/model")]
    assert statuses == [200, 401]
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "caption_ray.serve.access"]
    assert [line["route"] for line in lines][-2:] == ["/", "/v1/model"]


def test_the_prefix_without_its_slash_needs_no_key_either() -> None:
    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(StandIn(), api_keys=KEYS), root_path="/below")  # as Serve says it
        async with httpx.AsyncClient(transport=transport, base_url="https://host") as client:
            return await client.get(path)

    answers = [asyncio.run(ask(path)) for path in ("/below", "/below/", "/below/v1/model")]
    assert [answer.status_code for answer in answers] == [307, 200, 401]
    assert answers[0].headers["location"] == "below/"

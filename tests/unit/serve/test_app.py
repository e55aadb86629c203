import asyncio
import json
import time

import httpx
import pytest
from live import client_of
from odd_pictures import png
from stand_in import MODEL, StandIn

from caption_ray.serve.app import create_app
from caption_ray.serve.backend import BackendUnavailableError, OverloadedError
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.schemas import BatchAnswer, ErrorAnswer, Limits, ModelAnswer, PictureAnswer, StreamWord


def events(text: str) -> list[tuple[str, dict[str, object]]]:
    """Return names and data of server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def code_of(answer: httpx.Response) -> tuple[int, str]:
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert error.request_id == answer.headers["x-request-id"]
    return answer.status_code, error.code


def test_raw_body_and_form_give_the_same_captions(client: httpx.Client) -> None:
    raw = client.post("/v1/captions?beam_width=3&num_captions=2", content=png())
    form = client.post("/v1/captions?beam_width=3&num_captions=2", files={"any": ("dog.gif", png(), "text/plain")})
    answers = [PictureAnswer.model_validate_json(answer.content) for answer in (raw, form)]
    assert answers[0].captions == answers[1].captions
    assert len(answers[0].captions) == 2
    first, second = answers[0].captions
    assert 0 > first.log_probability >= second.log_probability
    assert first.text == " ".join(word.text for word in first.words)
    assert [word.attention for word in first.words] == [None] * len(first.words)
    assert (answers[0].picture.width, answers[0].picture.height) == (40, 30)
    timing = answers[0].timing
    assert 0 < timing.decode_ms + timing.model_ms <= timing.total_ms


def test_attention_of_each_word_sums_to_1(client: httpx.Client) -> None:
    (caption,) = client.post("/v1/captions?attention=true", content=png()).json()["captions"]
    for word in caption["words"]:
        assert [len(row) for row in word["attention"]] == [2, 2]
        assert sum(map(sum, word["attention"])) == pytest.approx(1, abs=1e-4)


def test_batch_keeps_the_order_and_the_good(client: httpx.Client) -> None:
    sent = [("x", ("a.png", png(50, 20))), ("x", ("b.png", png()[:50])), ("y", ("ü.png", png(20, 50)))]
    answer = client.post("/v1/captions/batch?beam_width=1", files=sent)
    results = BatchAnswer.model_validate_json(answer.content).results
    assert [result.name for result in results] == ["a.png", "b.png", "ü.png"]
    assert [result.error and result.error.code for result in results] == [None, "undecodable_picture", None]
    assert [result.result and result.result.picture.width for result in results] == [50, None, 20]


def test_stream_says_the_words_of_the_greedy_caption(client: httpx.Client) -> None:
    answer = client.post("/v1/captions/stream?attention=true", content=png())
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    words = [StreamWord.model_validate(data) for name, data in found if name == "word"]
    assert [name for name, _ in found] == ["word"] * len(words) + ["caption"]
    whole = PictureAnswer.model_validate(found[-1][1])
    greedy = client.post("/v1/captions?beam_width=1&attention=true", content=png()).json()["captions"]
    assert [word.text for word in words] == [word["text"] for word in greedy[0]["words"]]
    assert [word.index for word in words] == list(range(len(words)))
    assert whole.model_dump(mode="json")["captions"] == greedy


def test_model_is_described(client: httpx.Client) -> None:
    model = ModelAnswer.model_validate_json(client.get("/v1/model").content)
    assert (model.name, model.image_size, model.grid_side, model.vocabulary_size) == ("tiny", 64, 2, 11)
    assert (model.beam_width, model.max_words, model.precision) == (4, 6, "fp32")
    assert model.metrics == {"bleu_4": 0.125, "epoch": 3}
    assert client.post("/v1/captions", content=png()).json()["model_id"] == model.id


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        ("beam_width=0", 1), ("beam_width=11", 10), ("beam_width=21", 10), ("beam_width=two", None),
        ("beam_width=", None), ("beam_width=1.0", None), ("beam_width=%C2%B2", None), ("num_captions=0", 1),
        ("num_captions=3&beam_width=2", 2), ("num_captions=5", 4), ("attention=yes", None), ("attention=1", None),
        ("beam_width=1&beam_width=1", None), ("url=http://127.0.0.1/x.jpg", None), ("=", None),
    ],
)  # fmt: skip
def test_wrong_query(client: httpx.Client, query: str, limit: int | None) -> None:
    answer = client.post(f"/v1/captions?{query}", content=png())
    assert code_of(answer) == (400, "invalid_query")
    assert answer.json()["error"].get("limit") == limit


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n' + png() + b"\r\n"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PART + PART + b"--b--\r\n", FORM),
        (PART, FORM),
        (PART[:40], FORM),
        (b"--b--\r\n", FORM),
        (b"", FORM),
        (b"no form\r\n" + PART, FORM),
        (PART + b"--b--\r\n", {"Content-Type": "multipart/form-data"}),
        (PART + b"--b--\r\n", {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}),
        (b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n", FORM),
        (b"--b\r\n" + b"X-A: b\r\n" * 100 + b"\r\nx\r\n--b--\r\n", FORM),
    ],
    ids=[
        *("two parts", "no end", "cut head", "no parts", "empty", "preamble", "no boundary", "long boundary"),
        *("no header", "many headers"),
    ],
)
def test_malformed_form(client: httpx.Client, body: bytes, headers: dict[str, str]) -> None:
    assert code_of(client.post("/v1/captions", content=body, headers=headers)) == (400, "malformed_request")


def test_batch_wants_a_form(client: httpx.Client) -> None:
    assert code_of(client.post("/v1/captions/batch", content=png())) == (400, "malformed_request")


def test_unknown_path_and_method(client: httpx.Client) -> None:
    assert code_of(client.get("/v2/captions")) == (404, "not_found")
    assert code_of(client.get("/static/absent.js")) == (404, "not_found")
    assert code_of(client.get("/static/../app.py")) == (404, "not_found")
    answer = client.get("/v1/captions")
    assert code_of(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_small_limits_are_kept() -> None:
    limits = Limits(max_bytes=5_000, max_pixels=1_200, max_pictures=2)
    with client_of(StandIn(), limits) as client:
        assert client.post("/v1/captions", content=png(40, 30)).status_code == 200
        answer = client.post("/v1/captions", content=png(41, 30))
        assert code_of(answer) == (422, "too_many_pixels")
        assert answer.json()["error"]["limit"] == 1_200
        for body in (png(60, 60), (png(60, 60)[start : start + 900] for start in range(0, 12_000, 900))):
            answer = client.post("/v1/captions", content=body)  # with a Content-Length, then in chunks without
            assert code_of(answer) == (413, "too_large")
            assert answer.json()["error"]["limit"] == 5_000
            assert answer.headers["connection"] == "close"
        assert code_of(client.post("/v1/captions", files={"p": png(60, 60)})) == (413, "too_large")
        answer = client.post("/v1/captions/batch", files=[("p", png())] * 3)
        assert code_of(answer) == (413, "too_many_pictures")
        assert answer.json()["error"]["limit"] == 2
        answer = client.post("/v1/captions/batch", files=[("p", png(60, 60)), ("p", png())])
        first, second = answer.json()["results"]
        assert (first["error"]["code"], second["result"]["captions"][0]["text"]) == ("too_large", "a dog")


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions/stream"])
def test_overload_says_when_to_come_back(path: str) -> None:
    with client_of(StandIn([OverloadedError(7)])) as client:
        answer = client.post(path, content=png())
        assert code_of(answer) == (503, "overloaded")
        assert answer.headers["retry-after"] == "7"
        assert client.post(path, content=png()).status_code == 200


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions/stream"])
def test_lost_replica_is_tried_once_more(path: str) -> None:
    lost = BackendUnavailableError("the actor on 10.0.0.7 died")
    backend = StandIn([lost])
    with client_of(backend) as client:
        assert client.post(path, content=png()).status_code == 200
        assert len(backend.calls) == 2
        backend.failing = [lost, lost]
        answer = client.post(path, content=png())
        assert code_of(answer) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "10.0.0.7" not in answer.text
        assert len(backend.calls) == 4


def test_fault_of_ours_tells_nothing() -> None:
    with client_of(StandIn([RuntimeError("/secret/place")])) as client:
        answer = client.post("/v1/captions", content=png())
        assert code_of(answer) == (500, "internal_error")
        assert "secret" not in answer.text


def test_stream_that_fails_midway_ends_with_an_error() -> None:
    backend = StandIn()
    backend.failing_midway = [BackendUnavailableError("died")] * 2
    with client_of(backend) as client:
        found = events(client.post("/v1/captions/stream", content=png()).text)
    assert [name for name, _ in found] == ["word", "error"]
    assert ErrorAnswer.model_validate(found[1][1]).error.code == "unavailable"  # as where it fails at once
    assert len(backend.calls) == 2


def test_fault_of_ours_in_the_middle_of_a_stream_leaves_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    backend = StandIn()
    backend.failing_midway = [KeyError("somewhere")]
    with client_of(backend) as client:
        answer = client.post("/v1/captions/stream", content=png())
    assert events(answer.text)[-1][1]["error"]["code"] == "internal_error"  # type: ignore[index]
    (told,) = (record for record in caplog.records if record.exc_info)
    assert told.message == f"request {answer.headers['x-request-id']} failed"
    assert "KeyError: 'somewhere'" in caplog.text


def test_stream_whose_replica_dies_goes_on_where_it_was() -> None:
    backend = StandIn()
    backend.failing_midway = [BackendUnavailableError("died")]
    with client_of(backend) as client:
        found = events(client.post("/v1/captions/stream", content=png()).text)
    assert [data.get("text") for _, data in found] == ["a", "dog", None]
    assert found[-1][0] == "caption"
    assert len(backend.calls) == 2


def test_model_that_cannot_be_asked_now_is_taken_as_it_was() -> None:
    backend = StandIn()
    with client_of(backend) as client:
        assert client.post("/v1/captions", content=png()).status_code == 200
        backend.ready = False
        assert client.post("/v1/captions", content=png()).status_code == 200
        time.sleep(1.1)  # as old as it may be without being asked for anew
        assert client.post("/v1/captions", content=png()).status_code == 200


def test_too_busy_to_describe_the_model_is_ready() -> None:
    backend = StandIn()
    backend.failing_model = [OverloadedError(1), BackendUnavailableError("died"), OverloadedError(1)]
    with client_of(backend) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/v1/model").json()["error"]["code"] == "overloaded"  # after a second try
        assert client.get("/v1/model").json()["id"] == MODEL.id
        backend.failing_model = [OverloadedError(1)]
        assert client.get("/v1/model").json()["id"] == MODEL.id


def test_refused_batch_is_not_decoded_further() -> None:
    metrics = ServiceMetrics()
    with client_of(StandIn(), metrics=metrics, decode_threads=1, max_waiting=7) as client:
        large = png(1500, 1500)
        answer = client.post("/v1/captions/batch", files=[("p", large)] * 16)
        assert code_of(answer) == (503, "overloaded")
        assert client.post("/v1/captions", content=png()).status_code == 200  # after what a thread had begun
        found = metrics.text().decode()
    assert "caption_ray_decode_seconds_count 1.0" in found
    assert 'caption_ray_captions_total{outcome="overloaded"} 16.0' in found


def test_health_and_readiness() -> None:
    backend = StandIn()
    with client_of(backend) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        backend.ready = False
        assert code_of(client.get("/readyz")) == (503, "unavailable")
        assert code_of(client.get("/v1/model")) == (503, "unavailable")
        assert client.get("/healthz").json() == {"status": "ok"}


def test_more_bodies_than_memory_for_them() -> None:
    with client_of(StandIn(), max_buffered_bytes=len(png()) - 1) as client:
        for _ in range(2):
            assert code_of(client.post("/v1/captions", content=png())) == (503, "overloaded")
        assert client.post("/v1/captions", content=png(4, 4)).status_code == 200


def test_model_id_is_the_backends() -> None:
    with client_of(StandIn()) as client:
        assert client.post("/v1/captions", content=png()).json()["model_id"] == MODEL.id


def test_a_slash_too_many_is_no_redirect_to_plain_http() -> None:
    with client_of(StandIn()) as client:
        for path in ("/v1/captions/", "/v1/model/", "/docs/", "/healthz/"):
            answer = client.get(path) if path != "/v1/captions/" else client.post(path, content=png())
            assert code_of(answer) == (404, "not_found")


def test_a_batch_of_as_many_pictures_as_the_limits_allow_fits() -> None:
    with client_of(StandIn(), Limits(max_pictures=100)) as client:
        answer = client.post("/v1/captions/batch", files=[("p", png())] * 100)
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == 100


def test_the_prefix_without_its_slash_leads_to_the_page() -> None:
    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(StandIn()), root_path="/all/captions")  # as Serve says it
        async with httpx.AsyncClient(transport=transport, base_url="https://host") as client:
            return await client.get(path)

    answer = asyncio.run(ask("/all/captions"))
    assert (answer.status_code, answer.headers["location"]) == (307, "captions/")
    assert asyncio.run(ask("/all/captions/")).status_code == 200
    assert code_of(asyncio.run(ask("/all/captions/v1/model/"))) == (404, "not_found")

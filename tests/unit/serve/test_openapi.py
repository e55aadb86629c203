import json
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx
import pytest
from odd_pictures import png

from caption_ray.serve import schemas
from caption_ray.serve.errors import TABLE
from caption_ray.serve.examples import BATCH, BROKEN_OFF, CAPTION, EVENTS, MODEL
from caption_ray.serve.openapi import build_openapi
from caption_ray.serve.schemas import Limits

DOCUMENT = build_openapi(Limits())


def test_examples_are_what_the_models_say() -> None:
    schemas.PictureAnswer.model_validate(CAPTION)
    schemas.BatchAnswer.model_validate(BATCH)
    schemas.ModelAnswer.model_validate(MODEL)
    models = {"word": schemas.StreamWord, "caption": schemas.PictureAnswer, "error": schemas.ErrorAnswer}
    for example, last in ((EVENTS, "caption"), (BROKEN_OFF, "error")):
        names = [line.removeprefix("event: ") for line in example.splitlines() if line.startswith("event: ")]
        assert names == ["word", "word", last]
        bodies = [line.removeprefix("data: ") for line in example.splitlines() if line.startswith("data: ")]
        for name, body in zip(names, bodies, strict=True):
            models[name].model_validate_json(body)
    for response in DOCUMENT["components"]["responses"].values():
        for example in response["content"]["application/json"]["examples"].values():
            schemas.ErrorAnswer.model_validate(example["value"])


def test_every_reference_leads_somewhere() -> None:
    references = {part.split('"')[0] for part in json.dumps(DOCUMENT).split('"$ref": "')[1:]}
    assert len(references) > 20
    for reference in references:
        found = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]


def test_every_code_is_documented() -> None:
    documented = {
        code
        for response in DOCUMENT["components"]["responses"].values()
        for code in response["content"]["application/json"]["examples"]
    }
    ours = {refusal.code for refusal in TABLE.values()}
    assert documented == ours - {"client_gone"} | {"not_found", "method_not_allowed", "internal_error"}


def test_limits_are_the_services() -> None:
    document = build_openapi(Limits(max_beam_width=3, max_pictures=5, max_bytes=77))
    batch = document["paths"]["/v1/captions/batch"]["post"]
    assert batch["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["pictures"]["maxItems"] == 5
    (width,) = [parameter for parameter in batch["parameters"] if parameter["name"] == "beam_width"]
    assert (width["schema"]["minimum"], width["schema"]["maximum"]) == (1, 3)
    single = document["paths"]["/v1/captions"]["post"]
    assert single["requestBody"]["content"]["image/*"]["schema"]["maxLength"] == 77


def test_all_routes_are_documented_but_the_pages(client: httpx.Client) -> None:
    paths = {path: set(methods) for path, methods in client.get("/openapi.json").json()["paths"].items()}
    assert paths == {
        "/v1/captions": {"post"},
        "/v1/captions/batch": {"post"},
        "/v1/captions/stream": {"post"},
        "/v1/model": {"get"},
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }


class Links(HTMLParser):
    """Collects what a page loads and links to, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.addresses.append(value or "")
            if name == "id":
                assert value not in self.ids
                self.ids.add(value or "")


def test_docs_need_no_network_and_say_it_all(client: httpx.Client) -> None:
    text = client.get("/docs").text
    page = Links()
    page.feed(text)
    assert not page.tags & {"script", "style", "iframe", "img"}
    for address in page.addresses:
        assert urlsplit(address)[:2] == ("", "")
        assert address[1:] in page.ids if address[0] == "#" else client.get(f"/{address}").status_code == 200
    for needed in ("beam_width", "num_captions", "undecodable_picture", "Retry-After", "PictureAnswer", "event: word"):
        assert needed in text


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions/stream"])
def test_what_is_answered_is_what_is_documented(client: httpx.Client, path: str) -> None:
    answer = client.post(path, content=png())
    documented = DOCUMENT["paths"][path]["post"]["responses"]["200"]
    assert answer.headers["content-type"].split(";")[0] in documented["content"]
    assert all(name in answer.headers for name in documented["headers"])

"""The page and its parts as they are served; what they do is tested in a browser, in tests/system."""

import re
from pathlib import PurePosixPath
from urllib.parse import urljoin

import httpx
import pytest
from live import client_of
from stand_in import StandIn

from caption_ray.serve.app import STATIC
from caption_ray.serve.schemas import Limits

IMPORT = re.compile(r"""from "\./([\w-]+\.js)";""")


def test_page_is_told_the_services_limit() -> None:
    with client_of(StandIn(), Limits(max_bytes=12_345)) as client:
        answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert re.findall(r'<meta name="max-bytes" content="(.*?)">', answer.text) == ["12345"]


def test_every_part_of_the_page_is_there_and_of_its_kind(client: httpx.Client) -> None:
    parts = set(re.findall(r'(?:href|src)="(static/[^"]+)"', client.get("/").text))
    assert len(parts) > 15
    kinds = {
        ".js": {"text/javascript", "application/javascript"},  # a module of any other is refused
        ".css": {"text/css"},
        ".svg": {"image/svg+xml"},
        ".jpg": {"image/jpeg"},
    }
    for part in parts:
        answer = client.get(f"/{part}")
        assert answer.status_code == 200, part
        assert answer.headers["content-type"].partition(";")[0] in kinds[PurePosixPath(part).suffix], part


def test_parts_are_kept_and_asked_for_by_what_they_were(client: httpx.Client) -> None:
    first = client.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/v1/model").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_pages_work_below_a_prefix(client: httpx.Client, page: str) -> None:
    addresses = set(re.findall(r'(?:href|src)="([^"#]+)"', client.get(page).text))
    assert len(addresses) >= 3
    for address in addresses:
        below = urljoin(f"http://host/captions{page}", address)
        assert below.startswith("http://host/captions/"), address
        assert client.get(urljoin(page, address)).status_code == 200, address


def test_modules_are_small_all_used_and_asked_for_at_once(client: httpx.Client) -> None:
    text = client.get("/").text
    modules = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    assert {name: source.count("\n") for name, source in modules.items() if source.count("\n") > 200} == {}
    imported = {name for source in modules.values() for name in IMPORT.findall(source)}
    assert imported == set(modules) - {"app.js"}
    # Else each would be known of only when the one before it has been read.
    assert set(re.findall(r'<link rel="modulepreload" href="static/(.+?)">', text)) == imported
    assert re.findall(r'<script type="module" src="static/(.+?)"></script>', text) == ["app.js"]
    assert "<script>" not in text

"""The page and its parts as they are served; what they do is tested in a browser, in tests/system."""

import re
from pathlib import PurePosixPath

import httpx
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

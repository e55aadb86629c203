"""What the whole says when all is well: words as they come, many pictures, figures, and no picture in any log."""

import asyncio
import json
import re
import urllib.request
from typing import Any

import aiohttp
from serving import BYTES, Service, load, statuses, wait_until


def test_words_arrive_one_by_one(service: Service, picture: bytes) -> None:
    async def read() -> list[tuple[str, dict[str, Any]]]:
        events = []
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{service.url}/v1/captions/stream", data=picture, headers=BYTES) as answer,
        ):
            assert answer.status == 200
            text = (await answer.read()).decode()
        for block in text.strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            events.append((fields["event"], json.loads(fields["data"])))
        return events

    *words, (last, answer) = asyncio.run(read())
    assert {event for event, _ in words} == {"word"}
    assert last != "word"
    assert [word["text"] for _, word in words] == answer["captions"][0]["text"].split()
    assert answer["model_id"] == service.get("/v1/model")["id"]


def test_streams_and_single_pictures_at_once(service: Service, picture: bytes) -> None:
    """Four streams a time beside four clients: all are answered."""
    found: list[int] = []

    async def streams() -> None:
        async def one(session: aiohttp.ClientSession) -> None:
            async with session.post(f"{service.url}/v1/captions/stream", data=picture, headers=BYTES) as answer:
                await answer.read()
                found.append(answer.status)

        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await asyncio.gather(*(one(session) for _ in range(4)))

    replies = load(service.url, picture, num_clients=4, seconds=2, meanwhile=streams)
    assert statuses(replies) == {200: len(replies)}
    assert found == [200] * 12


def test_replicas_figures_stand_beside_rays_own(service: Service, picture: bytes) -> None:
    replies = load(service.url, picture, num_clients=4, seconds=1)
    address = service.metrics_address()

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    counted = r'ray_caption_ray_pictures_total\{[^}]*deployment="CaptionerReplica"[^}]*\} (\d+)'
    wait_until(lambda: sum(map(int, re.findall(counted, read()))) >= len(replies), 30)  # Ray gathers every few seconds
    assert "ray_caption_ray_batch_seconds_bucket" in read()
    assert "ray_caption_ray_batch_size_bucket" in read()


def test_a_request_leaves_one_line_of_json_and_nothing_of_the_picture(service: Service, picture: bytes) -> None:
    request = urllib.request.Request(
        f"{service.url}/v1/captions", data=picture, headers={**BYTES, "X-Request-ID": "seen-in-the-log"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers.get_all("X-Request-ID") == ["seen-in-the-log"]
    wait_until(lambda: "seen-in-the-log" in service.log.read_text(), 10)
    (line,) = [line for line in service.log.read_text().splitlines() if "seen-in-the-log" in line]
    record = json.loads(line[line.index("{") :])
    assert (record["status"], record["picture_bytes"]) == (200, len(picture))
    assert repr(picture[40:60])[2:-1] not in service.log.read_text()

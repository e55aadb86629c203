"""What the whole says when all is well: words as they come, many pictures, figures, and no picture in any log."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from serving import BYTES, ROOT, Service, load, statuses
from waiting import wait_until


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


def test_ray_exports_the_figures_of_all_replicas(service: Service, picture: bytes) -> None:
    """Every metric of the dashboard, and what /metrics says of where they are."""
    replies = load(service.url, picture, num_clients=4, seconds=1)
    address = service.metrics_address()

    def read(url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    def counted(name: str, *labels: str) -> float:
        """Return the sum of the series of a metric that have these labels."""
        series = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", read(f"http://{address}/metrics"), re.MULTILINE)
        return sum(float(value) for labelled, value in series if all(label in labelled for label in labels))

    ours = 'route="/v1/captions"', 'status="200"', 'deployment="Ingress"'
    wait_until(  # Ray gathers every few seconds
        lambda: (
            counted("ray_caption_ray_requests_total", *ours) >= len(replies)
            and counted("ray_caption_ray_batch_size_sum", 'deployment="CaptionerReplica"') >= len(replies)
        ),
        30,
    )
    assert counted("ray_caption_ray_captions_total", 'outcome="ok"') >= len(replies)
    assert counted("ray_caption_ray_caption_words_count", 'deployment="Ingress"') >= len(replies)
    # What has been gathered last may be of the midst of an earlier test.
    wait_until(lambda: counted("ray_caption_ray_requests_in_flight") == 0, 30)
    exported = set(re.findall(r"^(\w+)[{ ]", read(f"http://{address}/metrics"), re.MULTILINE))
    board = json.loads((ROOT / "gcp" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = {f"ray_caption_ray{name}" for query in queries for name in re.findall(r"\$\{prefix\}(\w+)", query)}
    assert named - exported <= {"ray_caption_ray_retries_total"}  # there from the first on
    # Asked themselves, the replicas would each tell a part: they tell none, and where all is.
    lines = read(f"{service.url}/metrics").splitlines()
    assert all(line.startswith("#") for line in lines)
    assert "ray_caption_ray_*" in lines[0]
    (told,) = re.findall(r"(/\S+prometheus\.yml)", " ".join(lines))
    temporary, _, within = told.partition("/session_latest/")
    # session_latest is the Ray that started last on this machine, which need not be this one.
    configs = [yaml.safe_load(file.read_text()) for file in Path(temporary).glob(f"session_2*/{within}")]
    discoveries = {Path(config["scrape_configs"][0]["file_sd_configs"][0]["files"][0]) for config in configs}
    found = [json.loads(discovery.read_text()) for discovery in discoveries if discovery.exists()]
    assert any(address in entry["targets"] for entries in found for entry in entries)


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

"""A promoted bundle takes over from the one that serves, while clients ask."""

import asyncio
import re
from pathlib import Path

import pytest
from serving import Service, load, statuses

from caption_ray.bundle import read_manifest
from caption_ray.promotion import PromoteRequest, Promotion, promote
from caption_ray.serve.config_file import bundle_in


def test_no_request_is_lost_when_a_bundle_is_promoted(
    service: Service, picture: bytes, bundle_a: str, bundle_b: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config names no bundle, and none is found here: nothing is compared, which test_promotion.py does."""
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    config = service.log.parent / "serve_config.yaml"
    (dashboard,) = set(re.findall(r"View the dashboard at \S*?(http://127\.0\.0\.1:\d+)", service.log.read_text()))
    request = PromoteRequest(
        candidate=bundle_b, data="", serve_config=str(config), models=str(tmp_path / "models"), dashboard=dashboard
    )
    promoted: list[Promotion] = []

    async def swap() -> None:
        await asyncio.sleep(1)
        promoted.append(await asyncio.to_thread(promote, request))

    replies = load(service.url, picture, num_clients=2, seconds=9, meanwhile=swap)
    assert statuses(replies) == {200: len(replies)}
    assert promoted[0].bundle == bundle_in(str(config)) != bundle_b
    old, new = read_manifest(bundle_a).digest, read_manifest(bundle_b).digest
    assert promoted[0].model_id == new
    by_time = sorted(replies, key=lambda reply: reply.asked)
    assert [by_time[at].body["model_id"] for at in (0, -1)] == [old, new]  # it was swapped while they asked
    model = service.get("/v1/model")
    assert (model["id"], model["location"]) == (new, promoted[0].bundle)

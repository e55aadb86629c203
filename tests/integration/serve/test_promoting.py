"""A promoted bundle takes over from the one that serves, while clients ask."""

import asyncio
import re

from serving import Service, load, statuses

from caption_ray.bundle import read_manifest
from caption_ray.promotion import PromoteRequest, Promotion, promote
from caption_ray.serve.config_file import bundle_in


def test_no_request_is_lost_when_a_bundle_is_promoted(
    service: Service, picture: bytes, bundle_a: str, bundle_b: str, data: str
) -> None:
    """Both models are untrained and score nothing, so that neither is worse."""
    config = service.log.parent / "serve_config.yaml"
    (dashboard,) = set(re.findall(r"View the dashboard at \S*?(http://127\.0\.0\.1:\d+)", service.log.read_text()))
    request = PromoteRequest(
        candidate=bundle_b,
        data=data,
        serve_config=str(config),
        models=str(config.parent / "models"),
        serving=bundle_a,
        num_draws=100,
        dashboard=dashboard,
    )
    promoted: list[Promotion] = []

    async def swap() -> None:
        promoted.append(await asyncio.to_thread(promote, request))

    replies = load(service.url, picture, num_clients=2, seconds=8, meanwhile=swap)
    assert statuses(replies) == {200: len(replies)}
    assert promoted[0].bundle == bundle_in(str(config)) != bundle_b
    old, new = read_manifest(bundle_a).digest, read_manifest(bundle_b).digest
    assert promoted[0].model_id == new
    assert replies[0].body["model_id"] == old
    model = service.get("/v1/model")
    assert (model["id"], model["location"]) == (new, promoted[0].bundle)

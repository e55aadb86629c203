"""Bundles served from gs://, as on a cluster, against an object store on this machine."""

import asyncio
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT, Service, load, statuses
from waiting import wait_until

from caption_ray.bundle import read_manifest
from caption_ray.storage import write_text

sys.path.insert(0, str(ROOT / "gcp"))
from upload_bundle import Arguments
from upload_bundle import main as upload_bundle

pytestmark = pytest.mark.slow


@pytest.fixture
def uploaded(bucket: str, bundle_a: str, bundle_b: str) -> list[str]:
    """URIs of two bundles."""
    return [
        str(upload_bundle(Arguments(bundle=bundle, destination=f"{bucket}/bundles"))["bundle"])
        for bundle in (bundle_a, bundle_b)
    ]


@pytest.fixture
def from_bucket(small_config: dict[str, Any], uploaded: list[str], tmp_path: Path) -> Iterator[Service]:
    """`serve run` with `args.bundle` as gcp/manifests.py fills it in."""
    config = copy.deepcopy(small_config)
    (application,) = config["applications"]
    application["args"]["bundle"] = application["deployments"][1]["user_config"]["bundle"] = uploaded[0]
    service = Service(config, tmp_path, {})
    try:
        service.wait_ready()
        yield service
    finally:
        service.end()


def test_service_starts_from_a_bucket_and_rolls_out_another_bundle(
    from_bucket: Service, uploaded: list[str], bundle_a: str, bundle_b: str, picture: bytes
) -> None:
    before, after = (read_manifest(bundle).digest for bundle in (bundle_a, bundle_b))
    assert from_bucket.get("/v1/model")["id"] == before
    options = {"max_batch_size": 4, "bundle": uploaded[1]}

    async def roll_out() -> None:
        await asyncio.sleep(2)
        await asyncio.to_thread(from_bucket.deploy, wait=False, user_config=options)

    replies = load(from_bucket.url, picture, num_clients=2, seconds=8, meanwhile=roll_out)
    assert statuses(replies) == {200: len(replies)}
    wait_until(lambda: from_bucket.get("/v1/model")["id"] == after, 60)
    answered_by = [reply.body["model_id"] for reply in replies]
    assert set(answered_by) <= {before, after}
    # What was damaged in the bucket is refused, and the one before goes on.
    write_text(f"{uploaded[0]}/metrics.json", "{}")
    from_bucket.deploy(user_config={**options, "bundle": uploaded[0]})
    wait_until(lambda: from_bucket.get("/v1/model")["refused"] is not None, 60)
    model = from_bucket.get("/v1/model")
    assert model["id"] == after
    assert uploaded[0].rpartition("-")[2] in model["refused"], "gcp/gke.sh finds the digest in it"

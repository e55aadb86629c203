"""A new bundle takes over while clients ask; a bad one does not."""

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Service, load, statuses
from waiting import wait_until

from caption_ray.bundle import read_manifest


@pytest.mark.parametrize("seconds", [9, pytest.param(60, marks=pytest.mark.slow)])
def test_no_request_is_lost_when_the_bundle_is_swapped(
    service: Service, picture: bytes, bundle_a: str, bundle_b: str, seconds: int
) -> None:
    old, new = read_manifest(bundle_a).digest, read_manifest(bundle_b).digest

    async def swap() -> None:
        await asyncio.sleep(seconds / 3)
        await asyncio.to_thread(service.deploy, wait=False, user_config={"bundle": bundle_b, "max_batch_size": 4})

    replies = load(service.url, picture, num_clients=2, seconds=seconds, meanwhile=swap)
    assert statuses(replies) == {200: len(replies)}
    assert len(replies) > 10 * seconds / 3
    by_time = sorted(replies, key=lambda reply: reply.asked)
    answered = [reply.body["model_id"] for reply in by_time]
    assert set(answered) == {old, new}
    # Once somebody has been answered by the new one, whoever asks is.
    swapped = min(reply.answered for reply in replies if reply.body["model_id"] == new)
    assert {reply.body["model_id"] for reply in replies if reply.asked > swapped} == {new}
    assert answered[: len(answered) // 4] == [old] * (len(answered) // 4)
    # Nor did anybody wait for the loading.
    assert max(reply.seconds for reply in replies) < 2.0
    model = service.get("/v1/model")
    assert (model["id"], model["location"], model.get("refused")) == (new, bundle_b, None)


def test_bad_bundle_is_refused_and_the_old_one_goes_on(
    service: Service, picture: bytes, bundle_a: str, damaged_bundle: str, tmp_path: Path
) -> None:
    good = read_manifest(bundle_a).digest
    (pid,) = service.replicas("CaptionerReplica").values()
    for user_config, reason in (
        ({"bundle": damaged_bundle}, r"model.safetensors: not what manifest.json says"),
        ({"bundle": str(tmp_path / "absent")}, "no manifest.json: not a bundle"),
        ({"bundel": "x"}, "user_config"),
        ({"max_batch_size": 0}, "max_batch_size"),
    ):

        async def deploy(user_config: dict[str, object] = user_config) -> None:
            await asyncio.to_thread(service.deploy, user_config=user_config)

        replies = load(service.url, picture, num_clients=1, seconds=1, meanwhile=deploy)
        wait_until(lambda reason=reason: reason in (service.get("/v1/model").get("refused") or ""), 10)  # type: ignore[misc]
        assert statuses(replies) == {200: len(replies)}
        assert service.get("/v1/model")["id"] == good
    assert list(service.replicas("CaptionerReplica").values()) == [pid]
    # Corrected, it says no more that anything is wrong.
    service.deploy(user_config={"max_batch_size": 8})
    wait_until(lambda: service.get("/v1/model").get("refused") is None, 10)


def test_storage_that_fails_for_a_moment_leaves_no_replica_behind(
    service: Service, bundle_b: str, tmp_path: Path
) -> None:
    late = Path(shutil.copytree(bundle_b, tmp_path / "late"))
    (late / "manifest.json").rename(tmp_path / "manifest.json")
    (late / "manifest.json").mkdir()  # read, it is an OSError, as is what a bucket answers that cannot be reached
    service.deploy(num_replicas=2)
    wait_until(lambda: len(service.replicas("CaptionerReplica")) == 2, 60)
    service.deploy(num_replicas=2, user_config={"bundle": str(late)})
    time.sleep(0.5)  # both have tried, and try again in 1 s and 5 s
    (late / "manifest.json").rmdir()
    (tmp_path / "manifest.json").rename(late / "manifest.json")

    def models() -> list[dict[str, Any]]:
        return [service.get("/v1/model") for _ in range(40)]

    wait_until(lambda: {model["location"] for model in models()} == {str(late)}, 45)
    found = models()
    assert len({model["loaded_at"] for model in found}) == 2
    assert {model.get("refused") for model in found} == {None}


def test_replica_that_starts_with_a_bad_bundle_answers_as_its_siblings(
    service: Service, bundle_b: str, tmp_path: Path
) -> None:
    """They were given another than the default since they started; a second one is started with one that is bad."""
    good = read_manifest(bundle_b).digest
    service.deploy(user_config={"bundle": bundle_b})
    wait_until(lambda: service.get("/v1/model")["id"] == good, 30)
    service.deploy(user_config={"bundle": str(tmp_path / "absent")}, num_replicas=2)
    wait_until(lambda: len(service.replicas("CaptionerReplica")) == 2, 60)

    def models() -> list[dict[str, Any]]:
        return [service.get("/v1/model") for _ in range(40)]

    bad = "no manifest.json: not a bundle"
    wait_until(lambda: all(bad in model.get("refused", "") for model in models()), 20)
    found = models()
    assert {model["id"] for model in found} == {good}
    # Both were asked, and the new one says what it has taken instead.
    assert len({model["loaded_at"] for model in found}) == 2
    assert any(f"started with {bundle_b} instead" in model["refused"] for model in found)


def test_single_replica_that_starts_with_a_bad_bundle_answers_with_the_default_and_says_so(
    service: Service, bundle_a: str, damaged_bundle: str
) -> None:
    """One that dies after a refusal has nobody to ask."""
    service.deploy(user_config={"bundle": damaged_bundle})
    (pid,) = service.replicas("CaptionerReplica").values()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: list(service.replicas("CaptionerReplica").values()) not in ([], [pid]), 60)
    model = service.get("/v1/model")
    assert model["id"] == read_manifest(bundle_a).digest
    assert "model.safetensors: not what manifest.json says" in model["refused"]
    assert model["refused"].endswith(f"started with {bundle_a} instead")

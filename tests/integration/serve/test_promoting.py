"""A promoted bundle takes over from the one that serves, while clients ask; one that is refused leaves no trace."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from serving import Service, load, statuses
from waiting import wait_until

from caption_ray.bundle import read_manifest
from caption_ray.errors import RunError
from caption_ray.promotion import PROMOTION_NAME, PromoteRequest, Promotion, promote
from caption_ray.serve.config_file import bundle_in, with_bundle
from caption_ray.serve.rollout import deploy


@pytest.fixture
def asked(service: Service, bundle_b: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromoteRequest:
    """The config names no bundle, and none is found here: nothing is compared."""
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(service.config))
    return PromoteRequest(
        candidate=bundle_b,
        data="",
        serve_config=str(config),
        models=str(tmp_path / "models"),
        num_draws=100,
        dashboard=dashboard_of(service),
    )


def dashboard_of(service: Service) -> str:
    (found,) = set(re.findall(r"View the dashboard at \S*?(http://127\.0\.0\.1:\d+)", service.log.read_text()))
    return str(found)


def check_swap(service: Service, picture: bytes, asked: PromoteRequest, old: str, seconds: float) -> Promotion:
    """Promote while clients ask, and check that each is answered, by the old bundle first and then by the new."""
    promoted: list[Promotion] = []

    async def swap() -> None:
        await asyncio.sleep(1)
        promoted.append(await asyncio.to_thread(promote, asked))

    replies = load(service.url, picture, num_clients=2, seconds=seconds, meanwhile=swap)
    assert statuses(replies) == {200: len(replies)}
    assert promoted[0].bundle == bundle_in(asked.serve_config) != asked.candidate
    new = read_manifest(asked.candidate).digest
    assert promoted[0].model_id == new
    by_time = sorted(replies, key=lambda reply: reply.asked)
    assert [by_time[at].body["model_id"] for at in (0, -1)] == [read_manifest(old).digest, new]
    model = service.get("/v1/model")
    assert (model["id"], model["location"]) == (new, promoted[0].bundle)
    return promoted[0]


def test_no_request_is_lost_when_a_bundle_is_promoted(
    service: Service, picture: bytes, asked: PromoteRequest, bundle_a: str
) -> None:
    assert check_swap(service, picture, asked, bundle_a, seconds=12).comparison is None


@pytest.mark.slow
def test_no_request_is_lost_while_bundles_are_compared(
    service: Service,
    picture: bytes,
    asked: PromoteRequest,
    bundle_a: str,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two untrained ones neither is to be the better."""
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", bundle_a)
    request = replace(asked, data=data, force=True)
    promoted = check_swap(service, picture, request, bundle_a, seconds=90)
    assert promoted.replaced == bundle_a
    assert promoted.comparison is not None
    assert promoted.comparison.num_pictures == 41


def test_bundle_that_the_service_cannot_read_is_taken_back(
    service: Service, asked: PromoteRequest, bundle_a: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept where a process with another working folder finds nothing, as on one machine's own disk."""
    monkeypatch.chdir(tmp_path)
    before = Path(asked.serve_config).read_text()
    with pytest.raises(RunError, match=r"refuses the new bundle, and goes on with its old one: .* not a bundle"):
        promote(replace(asked, models="/proc/self/cwd/models"))
    assert Path(asked.serve_config).read_text() == before
    (kept,) = (tmp_path / "models").iterdir()
    assert not (kept / PROMOTION_NAME).exists()
    # The service was told of the old config again, and complains no more.
    wait_until(lambda: service.get("/v1/model").get("refused") is None, 20)
    assert service.get("/v1/model")["id"] == read_manifest(bundle_a).digest


def test_applications_of_others_are_not_ended(service: Service, asked: PromoteRequest, bundle_b: str) -> None:
    """The one that runs is called captions."""
    config = Path(asked.serve_config)
    config.write_text(with_bundle(str(config), bundle_b).replace("name: captions", "name: others"))
    with pytest.raises(RunError, match="would end what else is deployed there: captions;"):
        deploy(str(config), dashboard_of(service))
    assert service.get("/v1/model")["id"] != read_manifest(bundle_b).digest

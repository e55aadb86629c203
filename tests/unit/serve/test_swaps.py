"""What a replica loads, and how often, when it starts beside others and when it is told of another bundle."""

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caption_ray.bundle import read_manifest
from caption_ray.errors import BundleError
from caption_ray.inference import Captioner
from caption_ray.serve import captioner as module
from caption_ray.serve import siblings
from caption_ray.serve.captioner import CaptionerReplica
from caption_ray.serve.schemas import ModelAnswer

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


@pytest.fixture
def sibling(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where another replica has its bundle from."""
    answer = SimpleNamespace(location="/models/now", id=read_manifest(str(tiny_bundle)).digest)

    async def describe() -> SimpleNamespace:
        return answer

    monkeypatch.setattr(siblings, "_describe_sibling", describe)
    return answer.location


def load_as_siblings(tiny_bundle: Path, loaded: list[str], fails: Exception | None) -> Captioner:
    async def load(location: str) -> Captioner:
        loaded.append(location)
        if fails is not None and location != "/models/default":
            raise fails
        return Captioner.load(str(tiny_bundle))

    return asyncio.run(siblings.load_as_siblings("/models/default", load))


def test_replica_starts_with_what_its_siblings_have(sibling: str, tiny_bundle: Path) -> None:
    loaded: list[str] = []
    load_as_siblings(tiny_bundle, loaded, None)
    assert loaded == [sibling]


def test_default_is_taken_where_the_siblings_bundle_is_bad(sibling: str, tiny_bundle: Path) -> None:
    loaded: list[str] = []
    load_as_siblings(tiny_bundle, loaded, BundleError("damaged"))
    assert loaded == [sibling, "/models/default"]


def test_replica_does_not_start_with_another_model_because_storage_has_failed(sibling: str, tiny_bundle: Path) -> None:
    loaded: list[str] = []
    with pytest.raises(OSError, match="503"):
        load_as_siblings(tiny_bundle, loaded, OSError("503"))
    assert loaded == [sibling]


class Slow:
    """Loads bundles when it is let, and counts them."""

    def __init__(self, load: Callable[..., Captioner]) -> None:
        self.load = load
        self.may = threading.Event()
        self.loaded: list[str] = []

    def __call__(self, location: str, precision: str) -> Captioner:
        self.loaded.append(Path(location).name)
        assert self.may.wait(30)
        return self.load(location, precision)


def copy_of(bundle: Path, folder: Path) -> str:
    """Copy a bundle, with another text in it, so that it has another digest; returns that."""
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    text = f"{folder.name} {time.monotonic_ns()}"
    (folder / "README.md").write_text(text)
    manifest["files"]["README.md"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return read_manifest(str(folder)).digest


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """What replicas load by, outside Ray."""
    slow = Slow(module.load_captioner)
    monkeypatch.setattr(module, "RayExporter", lambda: None)
    monkeypatch.setattr(module, "BatchMetrics", lambda _: None)
    monkeypatch.setattr(module, "log_through_serve", lambda: None)
    monkeypatch.setattr(module, "load_captioner", slow)
    return slow


async def started(bundle: Path, slow: Slow) -> Any:
    replica = CaptionerReplica.func_or_class(str(bundle))
    slow.may.set()
    await replica.reconfigure({})
    slow.may.clear()
    return replica


async def answers_by(replica: Any, digest: str) -> ModelAnswer:
    """Wait until a replica answers by the bundle of that digest."""
    deadline = time.monotonic() + 20
    while (await replica.model()).id != digest and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    model: ModelAnswer = await replica.model()
    assert model.id == digest
    return model


def test_other_settings_begin_no_second_load_of_the_same_bundle(tiny_bundle: Path, tmp_path: Path, slow: Slow) -> None:
    new, newest = tmp_path / "new", tmp_path / "newest"
    copy_of(tiny_bundle, new)
    digest = copy_of(tiny_bundle, newest)

    async def swap() -> None:
        replica = await started(tiny_bundle, slow)
        for settings in ({"bundle": str(new)}, {"bundle": str(new), "max_batch_size": 3}, {"bundle": str(newest)}):
            await replica.reconfigure(settings)
            await asyncio.sleep(0.3)
        assert slow.loaded == [tiny_bundle.name, "new", "newest"]
        slow.may.set()
        await answers_by(replica, digest)

    asyncio.run(swap())


def test_bundle_that_was_trained_anew_while_it_was_loaded_is_looked_at_again(
    tiny_bundle: Path, tmp_path: Path, slow: Slow
) -> None:
    copy_of(tiny_bundle, tmp_path / "new")

    async def swap() -> None:
        replica = await started(tiny_bundle, slow)
        await replica.reconfigure({"bundle": str(tmp_path / "new")})
        await asyncio.sleep(0.3)
        await replica.reconfigure({"bundle": 7})
        assert (await replica.model()).refused is not None
        slow.may.set()
        digest = copy_of(tiny_bundle, tmp_path / "new")
        await replica.reconfigure({"bundle": str(tmp_path / "new")})
        assert (await answers_by(replica, digest)).refused is None

    asyncio.run(swap())

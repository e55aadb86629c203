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

import pytest

from caption_ray.bundle import read_manifest
from caption_ray.errors import BundleError
from caption_ray.inference import Captioner
from caption_ray.serve import captioner as module
from caption_ray.serve import siblings
from caption_ray.serve.captioner import CaptionerReplica

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


def test_other_settings_begin_no_second_load_of_the_same_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "newest"):
        shutil.copytree(tiny_bundle, tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        (tmp_path / name / "README.md").write_text(name)
        manifest["files"]["README.md"] = hashlib.sha256(name.encode()).hexdigest()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(module, "RayExporter", lambda: SimpleNamespace(histogram=None))
    monkeypatch.setattr(module, "BatchMetrics", lambda _: SimpleNamespace())
    monkeypatch.setattr(module, "log_through_serve", lambda: None)
    slow = Slow(module.load_captioner)

    async def swap() -> None:
        replica = CaptionerReplica.func_or_class(str(tiny_bundle))
        slow.may.set()
        await replica.reconfigure({})
        slow.may.clear()
        for settings in ({"bundle": "new"}, {"bundle": "new", "max_batch_size": 3}, {"bundle": "newest"}):
            asked = {**settings, "bundle": str(tmp_path / str(settings["bundle"]))}
            await replica.reconfigure(asked)
            await asyncio.sleep(0.3)
        assert slow.loaded == [tiny_bundle.name, "new", "newest"]
        slow.may.set()
        deadline = time.monotonic() + 20
        while (await replica.model()).location != str(tmp_path / "newest") and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert (await replica.model()).location == str(tmp_path / "newest")

    monkeypatch.setattr(module, "load_captioner", slow)
    asyncio.run(swap())

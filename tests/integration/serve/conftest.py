import copy
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from livening import livened
from PIL import Image
from serving import ROOT, Service
from waiting import wait_until

from caption_ray.bundle import BundleConfig, build_model, read_manifest, save_bundle
from caption_ray.config import DecodeOptions, EncoderConfig, ModelConfig
from caption_ray.text.vocabulary import Vocabulary

_RUNNING = pytest.StashKey[Service]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End `serve run` with the last test of this folder: its processes would take time from all tests that follow."""
    yield
    if nextitem is not None and Path(__file__).parent not in nextitem.path.parents and _RUNNING in item.config.stash:
        item.config.stash[_RUNNING].end()
        del item.config.stash[_RUNNING]


def make_bundle(folder: Path, seed: int, vocabulary: Vocabulary) -> str:
    """Write a bundle of usual picture size, which takes about 15 ms a picture, so that load is felt by the model."""
    config = BundleConfig(
        encoder=EncoderConfig(backbone="mobilenet_v2", weights="none", image_size=224, seed=seed),
        model=ModelConfig(embedding_size=8, hidden_size=8, attention_size=4),
        decode=DecodeOptions(beam_width=2, max_words=6),
        num_features=1280,
        vocabulary_size=len(vocabulary),
    )
    torch.manual_seed(seed)
    model = build_model(config)
    assert model.encoder is not None
    livened(model.encoder)
    save_bundle(
        str(folder),
        name=folder.name,
        data_digest="ab" * 32,
        config=config,
        vocabulary=vocabulary,
        model=model,
        metrics={"bleu_4": 0.5},
    )
    return str(folder)


@pytest.fixture(scope="session")
def bundle_a(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> str:
    return make_bundle(tmp_path_factory.mktemp("a") / "first", 0, tiny_vocabulary)


@pytest.fixture(scope="session")
def bundle_b(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> str:
    return make_bundle(tmp_path_factory.mktemp("b") / "second", 1, tiny_vocabulary)


@pytest.fixture(scope="session")
def damaged_bundle(bundle_b: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = Path(shutil.copytree(bundle_b, tmp_path_factory.mktemp("c") / "damaged"))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


@pytest.fixture(scope="session")
def picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def small_config() -> dict[str, Any]:
    """The clone's own config, with a model that takes 16 requests at most, one replica, and fast replacement."""
    config: dict[str, Any] = copy.deepcopy(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
    (application,) = config["applications"]
    application["args"] = {"limits": {"body_timeout_s": 3, "deadline_s": 20}}
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"]
        deployment.update(num_replicas=1, health_check_period_s=1)
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    application["deployments"][1].update(max_ongoing_requests=8, max_queued_requests=8)
    application["deployments"][1]["user_config"] = {"max_batch_size": 4}
    return config


@pytest.fixture(scope="session")
def running(
    small_config: dict[str, Any],
    bundle_a: str,
    tmp_path_factory: pytest.TempPathFactory,
    ray_environment: None,
    pytestconfig: pytest.Config,
) -> Iterator[Service]:
    """`serve run`, once for all tests of this folder; each leaves it as it was."""
    service = Service(small_config, tmp_path_factory.mktemp("serve"), {"CAPTION_RAY_BUNDLE": bundle_a})
    try:
        service.wait_ready()
        pytestconfig.stash[_RUNNING] = service
        yield service
    finally:
        service.end()


@pytest.fixture
def service(running: Service, bundle_a: str) -> Iterator[Service]:
    yield running
    running.deploy()
    # Settings are there at once; the bundle is loaded while the one that a test has left goes on answering.
    digest = read_manifest(bundle_a).digest
    wait_until(lambda: running.get("/v1/model")["id"] == digest, 60)

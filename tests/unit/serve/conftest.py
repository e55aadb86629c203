from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from gated import Gated
from live import client_of

from caption_ray.inference import Captioner
from caption_ray.serve.engine import BatchRecord
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.metrics import ServiceMetrics


@pytest.fixture(scope="session")
def local_backend(tiny_bundle: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(Captioner.load(str(tiny_bundle), torch.device("cpu")))
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def metrics() -> ServiceMetrics:
    return ServiceMetrics()


@pytest.fixture(scope="session")
def client(local_backend: LocalBackend, metrics: ServiceMetrics) -> Iterator[httpx.Client]:
    """The app over a real, tiny model, on loopback."""
    with client_of(local_backend, metrics=metrics) as client:
        yield client


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Captioner:
    return Captioner.load(str(tiny_bundle), torch.device("cpu"))


@pytest.fixture
def gated(plain: Captioner) -> Gated:
    return Gated(plain)


@pytest.fixture
def records() -> list[BatchRecord]:
    return []

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_ray.cluster import connect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass what Ray's own modules warn themselves of: ray.data.DataContext() sets deprecated fields."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"))


@pytest.fixture(scope="session", autouse=True)
def ray_environment() -> Iterator[None]:
    """Have every Ray that tests or their jobs start be local, and write no token to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="session")
def local_ray(ray_environment: None) -> Iterator[None]:
    """Start Ray with two logical CPUs, once for all tests that ask for it."""
    with connect(num_cpus=2):
        yield

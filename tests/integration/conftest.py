import functools
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from object_store import EMULATOR_VARIABLE, new_bucket, object_store
from ports import free_port
from ray._private.parameter import RayParams
from small import EXPERIMENT, make_cache

from caption_ray.cluster import connect
from caption_ray.config import CaptionRules, VocabularyConfig
from caption_ray.data.prepare import prepare_dataset
from caption_ray.data.synthetic import write_synthetic_flickr8k
from caption_ray.train.trainer import TrainRequest, train


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass what Ray's own modules warn themselves of: ray.data.DataContext() sets deprecated fields."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Shut down `local_ray` with the last test of this folder: its processes would take time from all that follow."""
    yield
    if nextitem is not None and Path(__file__).parent not in nextitem.path.parents:
        shut_down_ray()


@pytest.fixture(scope="session", autouse=True)
def ray_environment() -> Iterator[None]:
    """Have every Ray that tests or their jobs start be local, and write no token to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Where gs:// leads, in this process and in all that Ray starts; `bucket` has somebody answer there.
        patch.setenv(EMULATOR_VARIABLE, f"http://127.0.0.1:{free_port()}")
        yield


@pytest.fixture(scope="session")
def bucket(ray_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket of an object store on this machine, which knows Google Cloud Storage's API."""
    with object_store(tmp_path_factory.mktemp("store") / "store.log"):
        yield new_bucket("captions")


@pytest.fixture(scope="session")
def local_ray(ray_environment: None) -> Iterator[None]:
    """Start Ray with two logical CPUs, once for all tests that ask for it.

    Its agent listens on whatever port is free. The usual one is left to the jobs that tests start beside it: a node
    starts four seconds later where its agent finds that taken (2.60).
    """
    with pytest.MonkeyPatch.context() as patch:
        anywhere = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)
        patch.setattr(RayParams, "__init__", anywhere)
        with connect(num_cpus=2):
            yield
            shut_down_ray()


def shut_down_ray() -> None:
    """Shut down the local Ray, at last without its GCS, whose answer a driver has been seen to await for ever (2.60).

    That was closing its subscriptions, after half an hour in which it had had nothing to do.
    """
    gcs = [child for child in psutil.Process().children(recursive=True) if child.name() == "gcs_server"]
    at_last = threading.Timer(60, lambda: [process.kill() for process in gcs])
    at_last.start()
    ray.shutdown()
    at_last.cancel()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """410 drawn pictures: 328 to train on, 41 each for dev and test, an odd number for two workers."""
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic_flickr8k(folder, 410, seed=3)
    return folder


@pytest.fixture(scope="session")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    folder = str(tmp_path_factory.mktemp("prepared") / "data")
    prepare_dataset(
        str(source),
        folder,
        skip_bad=False,
        overwrite=False,
        rules=CaptionRules(),
        vocabulary=VocabularyConfig(min_count=1),
    )
    return folder


@pytest.fixture(scope="session")
def features(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_cache(data, str(tmp_path_factory.mktemp("cached") / "features"))


@pytest.fixture(scope="session")
def request_two(data: str, features: str, tmp_path_factory: pytest.TempPathFactory) -> TrainRequest:
    return TrainRequest(
        experiment=EXPERIMENT,
        preset=EXPERIMENT,
        data=data,
        features=features,
        storage=str(tmp_path_factory.mktemp("runs")),
        name="undisturbed",
        num_workers=2,
        device="cpu",
    )


@pytest.fixture(scope="session")
def undisturbed(request_two: TrainRequest) -> dict[str, object]:
    outcome = train(request_two)
    assert not outcome.was_finished
    return outcome.metrics

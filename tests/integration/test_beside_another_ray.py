"""A second Ray on the machine, as `serve run` starts one beside a training: the two leave each other alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

_OTHER = """
import ray
ray.init("local", num_cpus=1, include_dashboard=True, log_to_driver=False)
print("up", flush=True)
input()
"""


@pytest.fixture
def other_ray(tmp_path: Path) -> Iterator[None]:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", (tmp_path / "log").read_text()
        yield
        process.communicate("\n", timeout=60)


@ray.remote(num_cpus=0)
class _Actor:
    def id(self) -> str:
        return ray.get_runtime_context().get_actor_id()


@ray.remote(num_cpus=0)
def _is_dead(actor_id: str) -> bool:
    """Tell whether Ray Train's own look would find an actor dead, for which it kills all workers of a training."""
    from ray.train.v2._internal.state.util import is_actor_alive
    from ray.util.state.exception import RayStateApiException

    try:
        return not is_actor_alive(actor_id, timeout=5)
    except RayStateApiException:  # it looks again
        return False


@pytest.mark.usefixtures("local_ray", "other_ray")
def test_another_ray_is_not_asked_whether_a_trainings_controller_lives() -> None:
    actor = _Actor.remote()
    actor_id = ray.get(actor.id.remote())
    assert not ray.get(_is_dead.remote(actor_id))

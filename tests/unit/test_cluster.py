import socket
from pathlib import Path

import psutil
import pytest

from caption_ray import cluster
from caption_ray.errors import UsageError


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, [2]),
        ({"cpu.max": "150000 100000\n"}, [2]),  # rounded up: half a CPU's time is of use
        ({"cpu.max": "10000 100000\n"}, [1]),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [3]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({}, []),
    ],
)
def test_a_containers_quota_bounds_the_cpus(files: dict[str, str], expected: list[int], tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cluster._quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("nodes", "num_actors", "num_cpus"),
    [
        ([{"CPU": 2.0}], 2, 0.5),
        ([{"CPU": 16.0}], 16, 15 / 16),
        ([{"CPU": 1.0}], 1, 0),
        ([{}], 1, 0),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 3, 1),
        ([{"CPU": 16.0}, {"CPU": 8.0}], 23, 1),
        ([{"CPU": 2.0}, {"memory": 1e9}], 2, 0.5),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}], 3, 0),
    ],
)
def test_actors_leave_a_whole_cpu_on_some_node(nodes: list[dict[str, float]], num_actors: int, num_cpus: float) -> None:
    found, per_actor = cluster.actor_resources(nodes)
    assert (found, per_actor["num_cpus"]) == (num_actors, num_cpus)
    assert per_actor["num_gpus"] == (1 if any("GPU" in node for node in nodes) else 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_where_nobody_listens_is_told_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"{host}:{listener.getsockname()[1]}"
        cluster._check_answers(address)
    with pytest.raises(UsageError, match=f"RAY_ADDRESS {address}: no Ray cluster answers there .*; unset it"):
        cluster._check_answers(address)
    with pytest.raises(UsageError, match=r"no Ray cluster answers there"):
        cluster._check_answers("a..b:1")
    for address in ("auto", "ray://127.0.0.1:1"):
        cluster._check_answers(address)  # Ray's to find out
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"), cluster.connect():
        pytest.fail("has connected")


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_a_cluster_that_is_not_to_be_found_on_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if "gcs_server" in {process.info["name"] for process in psutil.process_iter(["name"])}:
        pytest.skip("there is a Ray on this machine, which is found")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with (
        pytest.raises(UsageError, match=r"RAY_ADDRESS auto: no Ray cluster answers there .*; unset it"),
        cluster.connect(),
    ):
        pytest.fail("has connected")

from pathlib import Path

import pytest

from caption_ray import cluster


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

"""What training asks a file system for, counted: a cluster's shared one is slow at thousands of small files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, result_of, run

from caption_ray.data.synthetic import write_synthetic_flickr8k

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which counts the calls, is not installed"),
]


def count_calls(folder: Path, num_pictures: int, *, cached: bool) -> int:
    """Return how many calls that name a file of the data two epochs make, in all processes; the pictures are gone."""
    source, data, features = folder / "drawn", folder / "data", folder / "features"
    write_synthetic_flickr8k(source, num_pictures, seed=0)
    result_of(run("prepare_data.py", "--source", str(source), "--output", str(data), "--min-count", "1"))
    encoder = ("--encoder.backbone", "resnet18", "--encoder.weights", "none", "--encoder.image-size", "64")
    if cached:
        result_of(run("cache_features.py", "--data", str(data), "--output", str(features), *encoder))
    shutil.rmtree(source)
    command = [
        *("strace", "--follow-forks", "--seccomp-bpf", "-qq", "--trace=%file", f"--output={folder}/calls"),
        *(sys.executable, ROOT / "jobs" / "train.py", "quickstart", "--data", data, "--storage", folder / "runs"),
        *("--name", "traced", "--device", "cpu", "--num-workers", "2", "--training.epochs", "2"),
        *(("--features", features) if cached else encoder),
    ]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    places = (f'"{source}', f'"{data}', f'"{features}', '"drawn')
    with (folder / "calls").open(errors="replace") as lines:
        return sum(any(place in line for place in places) for line in lines)


@pytest.mark.parametrize("cached", [True, False])
def test_the_files_that_training_asks_for_do_not_grow_with_the_pictures(tmp_path: Path, cached: bool) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = count_calls(tmp_path / "few", 60, cached=cached)
    many = count_calls(tmp_path / "many", 600, cached=cached)
    assert few > 5
    assert many < few + 100

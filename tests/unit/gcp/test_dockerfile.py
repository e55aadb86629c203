import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_dockerfile_has_no_flaw_that_hadolint_knows(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    flawed = tmp_path / "Dockerfile"
    flawed.write_text(DOCKERFILE.replace("tini=0.19.*", "tini"))
    done = subprocess.run([hadolint, "--no-color", flawed], capture_output=True, text=True, check=False)
    assert "DL3008" in done.stdout


def test_everything_that_is_copied_is_let_through_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        word
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    covered = {path: [rule for rule in let_through if f"{path}/".startswith(f"{rule}/")] for path in copied}
    assert [path for path, rules in covered.items() if not rules] == []
    assert {rule for rules in covered.values() for rule in rules} == let_through
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch.fnmatch("caption_ray/__pycache__", rule) for rule in rules[1:])


def test_gpu_driver_is_found_where_gke_mounts_it_and_is_new_enough() -> None:
    final_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in final_stage
    assert "PATH=/opt/venv/bin:$PATH:/usr/local/nvidia/bin" in final_stage
    (build,) = re.findall(r"(?m)^ARG CUDA_BUILD=(cu\d+)$", DOCKERFILE)
    assert "cuda) build=$CUDA_BUILD" in DOCKERFILE
    assert f"{build} needs a driver from" in DOCKERFILE


def test_image_pins_what_the_package_allows() -> None:
    arguments = dict(line.split()[1].split("=", 1) for line in DOCKERFILE.splitlines() if line.startswith("ARG "))
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "torchvision", "ray"):
        (bounds,) = (d for d in dependencies if d.startswith((f"{name}>", f"{name}[")))
        least, most = bounds.partition(">=")[2].split(",<")
        pinned = [int(part) for part in arguments[f"{name.upper()}_VERSION"].split(".")]
        assert [int(part) for part in least.split(".")] <= pinned < [int(part) for part in most.split(".")]
    (version,) = re.findall(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())
    assert arguments["VERSION"] == version, "what the image's label says"
    rayservice = (ROOT / "gcp" / "rayservice.yaml").read_text()
    assert f'rayVersion: "{arguments["RAY_VERSION"]}"' in rayservice

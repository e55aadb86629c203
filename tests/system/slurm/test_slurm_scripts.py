"""What the scripts ask SLURM for, and what they refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_lab import ROOT
from slurm_user import User


def requested(user: User, command: str) -> dict[str, str]:
    """Submit a job that is held back, and return what it asks for."""
    job = user.type(f"{command}", check=True).stdout.strip().rpartition(" ")[2]
    text = user.type(f"scontrol show job {job}; scancel {job}", check=True).stdout
    told = dict(pair.split("=", 1) for pair in text.split() if "=" in pair)
    return {**told, "NumNodes": told["NumNodes"].partition("-")[0]}  # "2-2" until the scheduler has looked at it


def test_the_original_request_is_the_default(alice: User) -> None:
    job = requested(alice, "sbatch --hold slurm/ray_cluster.sh")
    assert job["NumNodes"] == "1"
    assert job["NumCPUs"] == "16"
    assert job["TresPerNode"] == "gres:gpu:p100:2"
    assert job["MinMemoryNode"] == "16G"
    assert job["TimeLimit"] == "20:00:00"
    assert job["Requeue"] == "1"


def test_memory_and_gpus_are_asked_for_per_node(alice: User) -> None:
    job = requested(alice, "sbatch --hold --gpus-per-node=0 --mem=0 slurm/ray_cluster.sh")
    assert job.get("TresPerNode", "gres:gpu:0") == "gres:gpu:0"
    assert job["MinMemoryNode"] == "0"
    refused = alice.type("sbatch --hold --mem-per-cpu=1G slurm/ray_cluster.sh")
    assert refused.returncode != 0
    assert "mutually exclusive" in refused.stderr


def test_typed_within_a_job_it_asks_for_one_of_its_own(alice: User) -> None:
    job = requested(alice, "SLURM_JOB_ID=999 slurm/ray_cluster.sh --hold --nodes=2 true")
    assert (job["NumNodes"], job["JobState"]) == ("2", "PENDING")


@pytest.mark.parametrize("options", ["-p gpu", "--time 8:00:00 python -V", "--hold --nodes 2"])
def test_values_apart_from_their_options_are_refused(alice: User, options: str) -> None:
    refused = alice.type(f"slurm/ray_cluster.sh {options}")
    assert refused.returncode == 2
    assert "without a space, as in --partition=work1 or -pwork1" in refused.stderr


def test_options_with_their_values_are_taken(alice: User) -> None:
    job = requested(alice, "slurm/ray_cluster.sh --hold -N2 --no-kill --time=5:00:00 python -V")
    assert (job["NumNodes"], job["TimeLimit"]) == ("2", "05:00:00")


def test_the_site_file_and_options_change_it(alice: User) -> None:
    site = alice.checkout / "slurm" / "other.env"
    site.write_text("SBATCH_OPTIONS='--hold --nodes=2 --time=1:00:00 --mem=2G'\n")
    job = requested(alice, f"CAPTION_RAY_SITE={site} slurm/ray_cluster.sh --time=5:00:00 --cpus-per-task=3 python -V")
    assert (job["NumNodes"], job["TimeLimit"], job["MinMemoryNode"]) == ("2", "05:00:00", "2G")
    assert job["NumCPUs"] == "6"
    assert job["TresPerNode"] == "gres:gpu:p100:2"


def refusal(script: str, *arguments: str, home: Path, **variables: str) -> str:
    """Run a script that must refuse by exit code 2 or 1, and return what it says."""
    environment = {**os.environ, "HOME": str(home), "USER": "nobody", **variables}
    command = [str(ROOT / "slurm" / script), *arguments]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "usage" in done.stderr or "no command" in done.stderr else 1), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "reason"),
    [
        ("setup_env.sh", ("--cpu",), {}, "--cpu: no such option"),
        (
            "setup_env.sh",
            (),
            {"CAPTION_RAY_PYTHON": "/absent/python"},
            "cannot make environments, or is absent",
        ),
        ("submit.sh", (), {}, "no command; for example"),
        ("submit.sh", ("--wait",), {}, "--wait: no such option"),
        ("submit.sh", ("true",), {}, "there is no jobs/train.py here"),
        ("submit.sh", ("true",), {"CAPTION_RAY_SITE": "/absent/site.env"}, "there is no /absent/site.env"),
    ],
)
def test_wrong_use_is_refused(
    tmp_path: Path, script: str, arguments: tuple[str, ...], variables: dict[str, str], reason: str
) -> None:
    assert reason in refusal(script, *arguments, home=tmp_path, **variables)


@pytest.mark.parametrize("name", ["thesis.tex", "pyvenv.cfg"])
def test_an_environment_never_takes_the_place_of_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / name).touch()
    said = refusal("setup_env.sh", home=tmp_path, CAPTION_RAY_VENV=str(tmp_path / "venv"))
    assert "holds what is not this script's" in said
    assert (tmp_path / "venv" / name).exists()


def test_an_environment_that_could_not_be_made_is_made_anew(tmp_path: Path) -> None:
    python, venv = tmp_path / "python", tmp_path / "venv"
    python.write_text(
        f'#!/bin/bash\n[[ "$1 $2" != "-m venv" ]] || {{ touch "$3/lib"; exit 1; }}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        said = refusal("setup_env.sh", home=tmp_path, CAPTION_RAY_VENV=str(venv), CAPTION_RAY_PYTHON=str(python))
        assert "no environment could be made there; is the quota used up?" in said
        assert {path.name for path in venv.iterdir()} == {"made-from", "lib"}


@pytest.mark.slow
def test_the_environment_for_the_p100_has_kernels_for_it_and_is_made_once(tmp_path: Path) -> None:
    """Downloads 3 GB, the first time."""
    command = [str(ROOT / "slurm" / "setup_env.sh")]
    environment = {**os.environ, "HOME": str(tmp_path), "CAPTION_RAY_VENV": str(tmp_path / "venv")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torch 2.7.1+cu126 has kernels for: " in done.stdout
    assert " sm_60 " in done.stdout
    subprocess.run([tmp_path / "venv" / "bin" / "python", "-c", "import optuna, ruamel.yaml"], check=True)  # for sweeps
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.endswith("is up to date\n")

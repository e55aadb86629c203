"""Every shell script of the repository, by shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / ".ci" / "run"]
SCRIPTS += sorted(path for folder in ("gcp", "slurm", "tests") for path in (ROOT / folder).rglob("*.sh"))
SOURCED = ("common.sh", "steps.sh", "waits.sh")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install -e '.[dev]' brings it")
    done = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(SCRIPTS) > 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_are_executable_and_say_what_they_do(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" or script.name in SOURCED
    assert lines[1].startswith("# ")
    assert script.stat().st_mode & 0o111 or script.name in SOURCED


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        *(
            (option, True)
            for option in ("--time=1:00:00", "-N2", "-pwork1", "-H", "--exclusive", "--nice", "--no-kill")
        ),
        *((option, False) for option in ("--time", "-N", "-p", "-A", "--partition", "--")),
    ],
)
def test_options_of_sbatch_are_told_from_those_that_miss_their_value(option: str, expected: bool) -> None:
    script = f"source slurm/common.sh && is_whole_option {option}"
    assert (subprocess.run(["bash", "-c", script], cwd=ROOT, check=False).returncode == 0) is expected


def test_only_what_says_so_is_absent(tmp_path: Path) -> None:
    """Else gcp/gke.sh leaves running what it could not look up."""
    for said, code, expected in (
        ("ERROR: (gcloud) NOT_FOUND: Requested entity was not found.", 1, "absent"),
        ('Error from server (NotFound): namespaces "caption-ray" not found', 1, "absent"),
        ("ERROR: gs://p-caption-ray not found: 404.", 1, "absent"),
        ("ERROR: ResponseError: code=503, message=try again", 1, "ended"),
        ("gcloud: command not found", 127, "ended"),
        ("executable gke-gcloud-auth-plugin not found", 1, "ended"),
        ("", 0, "there"),
    ):
        tool = tmp_path / "tool"
        tool.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {code}\n")
        tool.chmod(0o755)
        script = f"set -euo pipefail; source gcp/steps.sh; if exists {tool}; then echo there; else echo absent; fi"
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.stdout.strip() or "ended") == expected, said
        assert (done.stderr.strip() != "") is (expected == "ended")
        assert said in done.stderr or expected == "absent"

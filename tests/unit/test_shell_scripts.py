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

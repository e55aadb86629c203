"""Jobs as people start them: a process each."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickStart:
    """The quick start, done: its folder, what it wrote to stdout and stderr, and how long it took."""

    folder: Path
    stdout: str
    stderr: str
    seconds: float


def run(job: str, *arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, in `folder` if one is given."""
    command = [sys.executable, ROOT / "jobs" / job, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return the JSON object that a job printed as its last line, the job having ended well."""
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result

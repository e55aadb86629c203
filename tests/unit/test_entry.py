import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caption_ray.bundle import load_bundle
from caption_ray.data.feature_manifest import load_feature_manifest
from caption_ray.data.shards import load_manifest
from caption_ray.errors import CaptionRayError

JOBS = Path(__file__).parents[2] / "jobs"
JOB = '''
import os
import subprocess
from collections.abc import Mapping
from typing import Annotated

import tyro
from pydantic import Field

from caption_ray.config import Settings, VocabularyConfig
from caption_ray.entry import run_job
from caption_ray.errors import CaptionRayError, UsageError


class Arguments(Settings):
    """Does what it is told."""

    action: str = Field(description="What to do.")
    loud: bool = Field(False, description="Say more.")
    count: int = Field(1, ge=1, description="How often.")
    vocabulary: Annotated[VocabularyConfig, tyro.conf.arg(name="")] = VocabularyConfig()


def main(arguments: Arguments) -> Mapping[str, object]:
    match arguments.action:
        case "talk":
            print("from Python")
            os.write(1, b"from C\\n")
            subprocess.run(["echo", "from a child"], check=True)
        case "usage":
            raise UsageError("no such folder: pictures")
        case "failure":
            raise CaptionRayError("captions.txt:7: two columns\\nremedy: look at it")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "interrupt":
            raise KeyboardInterrupt
        case "forbidden":
            raise PermissionError(13, "Permission denied", "runs/x")
        case "full":
            raise OSError(28, "No space left on device", "runs/x")
        case "terminate":
            raise SystemExit(15)
        case "extra":
            raise ModuleNotFoundError("No module named 'ruamel'", name="ruamel.yaml")
        case "nan":
            return {"loss": float("nan")}
    return {"loud": arguments.loud, "count": arguments.count, "text": "äöü"}


if __name__ == "__main__":
    run_job(main, Arguments)
'''


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


def run(job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, job, *arguments], capture_output=True, text=True, timeout=300)


def test_stdout_is_one_json_object_whatever_else_is_printed(job: Path) -> None:
    done = run(job, "--action", "talk", "--loud", "--count", "3")

    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {"loud": True, "count": 3, "text": "äöü"}
    assert "from Python" in done.stderr
    assert "from C" in done.stderr
    assert "from a child" in done.stderr


@pytest.mark.parametrize(
    ("action", "exit_code", "message"),
    [
        ("usage", 2, "no such folder: pictures"),
        ("failure", 1, "captions.txt:7: two columns\nremedy: look at it"),
        ("interrupt", 130, "interrupted"),
        ("terminate", 143, "terminated"),
        (
            "forbidden",
            2,
            "[Errno 13] Permission denied: 'runs/x'; choose a place that you may read and write",
        ),
        (
            "full",
            1,
            "[Errno 28] No space left on device: 'runs/x'; make room, or choose another place, and give the same "
            "command again",
        ),
        ("extra", 2, "ruamel.yaml is not installed: pip install -e '.[tune]'"),
    ],
)
def test_expected_failures_are_a_message_and_an_exit_code(job: Path, action: str, exit_code: int, message: str) -> None:
    done = run(job, "--action", action)

    assert done.returncode == exit_code
    assert done.stdout == ""
    assert done.stderr[len("12:34:56 ") :] == f"{message}\n"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (load_manifest, "no dataset.json: not a prepared data set"),
        (lambda folder: load_feature_manifest(folder, None), "no features.json: not a feature cache"),
        (load_bundle, "no manifest.json: not a bundle"),
    ],
)
def test_a_path_that_holds_nothing_of_the_kind_is_wrong_use(load: Callable[[str], object], message: str) -> None:
    with pytest.raises(CaptionRayError, match=f"no/such/folder: {message}") as caught:
        load("no/such/folder")

    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("action", "error"), [("bug", "ZeroDivisionError: a bug"), ("nan", "ValueError")])
def test_other_exceptions_are_a_traceback_and_exit_code_1(job: Path, action: str, error: str) -> None:
    done = run(job, "--action", action)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    assert error in done.stderr


def test_help_goes_to_stdout(job: Path) -> None:
    done = run(job, "--help")

    assert done.returncode == 0
    assert "Does what it is told." in done.stdout
    assert "How often. (default: 1)" in done.stdout
    assert "--loud | --no-loud" in done.stdout


def test_help_that_nobody_reads_to_the_end_is_no_traceback(job: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, job, "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--action", "talk", "--cuont", "2"),
        ("--action", "talk", "--count", "0"),
        ("--action", "talk", "--count", "x"),
    ],
)
def test_a_wrong_command_line_exits_with_2(job: Path, arguments: tuple[str, ...]) -> None:
    done = run(job, *arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr != ""


def test_a_bound_of_nested_settings_is_told_in_a_line(job: Path) -> None:
    done = run(job, "--action", "talk", "--min-count", "0")
    assert done.returncode == 2
    assert done.stderr[len("12:34:56 ") :] == "--min-count 0: Input should be greater than or equal to 1\n"


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.py")), ids=lambda job: job.stem)
def test_help_is_given_before_anything_is_loaded_that_takes_seconds(job: Path) -> None:
    code = f"""
import runpy, sys
sys.argv = [{job.name!r}, "--help"]
try:
    runpy.run_path({str(job)!r}, run_name="__main__")
except SystemExit as end:
    print(end.code, sorted({{"ray", "torch", "torchvision", "pandas"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "usage" in done.stdout

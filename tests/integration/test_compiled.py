"""Compiling the kernels: kept once for all, and done without where it cannot be."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_ray.model import compiled, portable

needs_kernel = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")
pytestmark = pytest.mark.skipif(
    portable.FOLDER.exists(), reason=f"libraries were compiled beforehand: {portable.FOLDER}"
)


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let every test load anew, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.load.cache_clear()
    yield
    compiled.load.cache_clear()


def start_worker(cache: Path) -> "subprocess.Popen[bytes]":
    code = "from caption_ray.model import compiled; raise SystemExit(compiled.load() is None)"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": str(cache)})


@needs_kernel
def test_library_is_kept_under_a_name_that_says_what_it_was_made_from(tmp_path: Path) -> None:
    assert compiled.load() is not None
    (single,) = (tmp_path / "caption_ray").iterdir()
    assert compiled.load("BFLOAT16") is not None
    assert len(list((tmp_path / "caption_ray").iterdir())) == 2
    made = single.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert compiled.load() is not None
    assert single.stat().st_mtime_ns == made


@needs_kernel
def test_spoilt_library_is_made_anew(tmp_path: Path) -> None:
    assert start_worker(tmp_path).wait(timeout=120) == 0
    (library,) = (tmp_path / "caption_ray").iterdir()
    size = library.stat().st_size
    for spoil in (lambda: library.write_bytes(b"not a library"), lambda: os.truncate(library, size // 2)):
        spoil()
        assert start_worker(tmp_path).wait(timeout=120) == 0
        assert library.stat().st_size == size


@needs_kernel
def test_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder in a file: refused to root, too
    assert compiled.load() is not None


@needs_kernel
def test_home_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder can still be made there, and the compiler's output not be written."""
    gcc, cache = tmp_path / "tools" / "gcc", tmp_path / "cache"
    gcc.parent.mkdir()
    refuse = f'case "$*" in *{cache}*) echo "final link failed: Disk quota exceeded" >&2; exit 1 ;; esac'
    gcc.write_text(f'#!/bin/sh\n{refuse}\nexec {shutil.which("gcc")} "$@"\n')
    gcc.chmod(0o700)
    monkeypatch.setenv("PATH", f"{gcc.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert compiled.load() is not None
    assert not list((cache / "caption_ray").iterdir())


@needs_kernel
def test_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert compiled.load() is not None


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@needs_kernel
def test_many_workers_start_at_once(tmp_path: Path) -> None:
    workers = [start_worker(tmp_path) for _ in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    (library,) = (tmp_path / "caption_ray").iterdir()
    assert library.suffix == ".so"


@pytest.mark.parametrize("compiler", ["none", "failing"])
def test_without_a_working_compiler_torch_does_it(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if compiler == "failing":
        (tmp_path / "gcc").write_text("#!/bin/sh\necho no such option >&2; exit 1\n")
        (tmp_path / "gcc").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO, "caption_ray"):
        assert compiled.load() is None
        assert compiled.load() is None
    (line,) = [record.getMessage() for record in caplog.records if record.name == "caption_ray.model.compiled"]
    assert "torch's operations" in line


@pytest.mark.parametrize(("value", "off"), [("off", True), ("0", True), ("OFF", True), ("", False), ("auto", False)])
def test_switch(value: str, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_RAY_KERNEL", value)
    assert compiled.switched_off() is off

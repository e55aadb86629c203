"""Libraries compiled beforehand: the best that a CPU can run, and of these very sources."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_ray.model import compiled, compiler, portable


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(portable, "FOLDER", tmp_path / "portable")
    compiled.load.cache_clear()
    yield tmp_path / "portable"
    compiled.load.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str, *, may_use_tiles: bool = True) -> None:
    monkeypatch.setattr(compiler, "cpu_flags", lambda: f"flags\t\t: fpu sse2 {flags}".encode())
    monkeypatch.setattr(compiler, "may_use_tiles", lambda: may_use_tiles)
    monkeypatch.setattr(portable.platform, "machine", lambda: "x86_64")


AVX2 = "avx2 bmi1 bmi2 f16c fma abm movbe"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "may_use_tiles", "found"),
    [
        ("", True, None),
        ("avx2 fma", True, None),
        (AVX2, True, "avx2"),
        (AVX512, True, "avx512"),
        (f"{AVX512} avx512_bf16", True, "avx512bf16"),
        (f"{AVX512} avx512_bf16 amx_tile amx_bf16", True, "amx"),
        (f"{AVX512} avx512_bf16 amx_tile amx_bf16", False, "avx512bf16"),
    ],
)
def test_best_that_the_cpu_can_run(
    flags: str, may_use_tiles: bool, found: str | None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    pretend(monkeypatch, flags, may_use_tiles=may_use_tiles)
    assert portable.find(()) is None
    folder.mkdir()
    for target in portable.TARGETS:
        target.library(("BFLOAT16",)).touch()
    assert portable.find(()) is None
    library = portable.find(("BFLOAT16",))
    assert (library and library.name.split("-")[0]) == found


def test_library_of_other_sources_is_left_alone(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    pretend(monkeypatch, AVX2)
    folder.mkdir()
    portable.TARGETS[-1].library(()).touch()
    assert portable.find(()) is not None
    changed = tmp_path / "changed.c"
    changed.write_text("int changed;")
    monkeypatch.setattr(compiler, "sources", lambda: [changed])
    assert portable.find(()) is None


def test_no_libraries_are_made_for_other_processors(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An image that is built on ARM has an empty folder of them."""
    monkeypatch.setattr(portable.platform, "machine", lambda: "aarch64")
    assert portable.compile_all() == []
    assert list(folder.iterdir()) == []
    assert portable.find(()) is None


def test_library_that_cannot_be_loaded_is_compiled_instead(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    if compiled.load() is None:
        pytest.skip("no gcc, or torch without GNU OpenMP")
    compiled.load.cache_clear()
    pretend(monkeypatch, AVX2, may_use_tiles=compiler.may_use_tiles())
    folder.mkdir()
    portable.TARGETS[-1].library(()).write_bytes(b"not a library")
    found = compiled.load()
    assert found is not None
    assert str(folder) not in found._name


def test_machine_without_a_compiler_takes_what_was_compiled(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    usable = [target for target in portable.TARGETS if target.needs <= set(compiler.cpu_flags().decode().split())]
    if compiled.load() is None or not usable:
        pytest.skip("no gcc, torch without GNU OpenMP, or a CPU that is none of the kinds")
    monkeypatch.setattr(portable, "TARGETS", usable[-1:])
    made = portable.compile_all()
    assert sorted(made) == sorted(folder.iterdir())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.load.cache_clear()
    loaded = [compiled.load(*definitions) for definitions in compiler.DEFINITIONS.values()]
    assert [library and library._name for library in loaded] == [str(path) for path in made]
    assert not (tmp_path / "caption_ray").exists()

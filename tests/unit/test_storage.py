import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from caption_ray import storage
from caption_ray.errors import UsageError


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "path" else tmp_path.as_uri()


def test_write_then_read(folder: str) -> None:
    location = storage.join(folder, "new", "folder", "a.bin")
    assert not storage.exists(location)
    assert storage.num_bytes(location) is None
    storage.write_bytes(location, b"\x00\xff\r\n")
    assert storage.exists(location)
    assert storage.num_bytes(location) == 4
    assert storage.read_bytes(location) == b"\x00\xff\r\n"
    storage.write_text(location, "zwei Hunde, ein Bär")
    assert storage.read_text(location) == "zwei Hunde, ein Bär"


def test_compressed_looking_files_are_read_as_they_are(folder: str) -> None:
    location = storage.join(folder, "a.gz")
    storage.write_bytes(location, b"not gzip")
    assert storage.read_bytes(location) == b"not gzip"


def test_list_files_is_sorted_and_relative(folder: str) -> None:
    for name in ("b", "a", "sub/deep/c"):
        storage.write_bytes(storage.join(folder, name), b"x")
    assert storage.list_files(folder) == ["a", "b", "sub/deep/c"]
    assert storage.list_files(storage.join(folder, "absent")) == []


@pytest.mark.parametrize("name", ["a b.jpg", "é.jpg", "a#1.jpg", "100%25.jpg", "a+b?c=d&e.jpg", "sub f/ü.jpg"])
def test_any_name_can_be_written_listed_and_read(folder: str, tmp_path: Path, name: str) -> None:
    inner = storage.join(folder, "pictures of 100 %")
    location = storage.join(inner, name)
    storage.write_bytes(location, b"x")
    assert (tmp_path / "pictures of 100 %" / name).read_bytes() == b"x"
    assert storage.list_files(inner) == [name]
    assert storage.list_files(folder) == [f"pictures of 100 %/{name}"]
    assert storage.join(folder, *storage.list_files(folder)) == location
    assert storage.read_bytes(location) == b"x"
    assert storage.relative(location, inner) == name
    storage.delete_folder(inner)
    assert not storage.exists(location)


def test_local_file_is_replaced_never_rewritten(tmp_path: Path) -> None:
    location = str(tmp_path / "a.json")
    storage.write_bytes(location, b"old content")
    with (tmp_path / "a.json").open("rb") as reader:
        storage.write_bytes(location, b"new")
        assert reader.read() == b"old content"
    assert storage.read_bytes(location) == b"new"
    assert storage.list_files(str(tmp_path)) == ["a.json"]


def test_a_users_file_is_rewritten_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("a: 1")
    (tmp_path / "real.yaml").chmod(0o600)
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    storage.rewrite_text(str(tmp_path / "link.yaml"), "a: 2")
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text() == "a: 2"
    assert (tmp_path / "real.yaml").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_of_several_that_create_a_file_one_has_its_way(tmp_path: Path) -> None:
    storage.create_text(f"{tmp_path}/a/b", "first")
    storage.create_text(f"{tmp_path}/a/b", "second")
    assert {path.name: path.read_text() for path in (tmp_path / "a").iterdir()} == {"b": "first"}


@pytest.mark.parametrize("write", [storage.write_text, storage.rewrite_text, storage.create_text])
def test_a_write_that_fails_leaves_nothing_on_a_full_disk(
    write: Callable[[str, str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    if write is not storage.create_text:
        path.write_text("old")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    real = Path.write_bytes

    def fill_up(self: Path, content: bytes | str, encoding: str | None = None) -> None:
        real(self, b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fill_up)
        patched.setattr(Path, "write_text", fill_up)
        with pytest.raises(OSError, match="No space left"):
            write(str(path), "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_error_that_names_no_file_is_given_the_name_of_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.json'"):
        storage.write_bytes(str(tmp_path / "a.json"), b"x")


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(UsageError, match=f"{folder}: cannot be written to .*; choose another output"):
            storage.check_writable(str(tmp_path / folder))
    storage.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_delete_folder(folder: str) -> None:
    inner = storage.join(folder, "inner")
    storage.write_bytes(storage.join(inner, "sub", "a"), b"x")
    storage.write_bytes(storage.join(folder, "kept"), b"x")
    storage.delete_folder(inner)
    storage.delete_folder(inner)
    assert storage.list_files(folder) == ["kept"]


def test_copy_folder(folder: str, tmp_path: Path) -> None:
    source = storage.join(folder, "source")
    storage.write_bytes(storage.join(source, "a"), b"1")
    storage.write_bytes(storage.join(source, "sub", "b"), b"2")
    storage.copy_folder(source, str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "a").read_bytes() == b"1"
    assert (tmp_path / "copy" / "sub" / "b").read_bytes() == b"2"


def test_replace_folder(folder: str) -> None:
    new, old = (storage.join(folder, name) for name in ("new", "old"))
    for location, file in ((new, "deep/a"), (old, "b")):
        storage.write_text(storage.join(location, file), location)
    storage.replace_folder(new, old)
    assert storage.list_files(folder) == ["old/deep/a"]
    storage.write_text(storage.join(new, "c"), "")
    storage.replace_folder(new, storage.join(folder, "absent"))
    assert storage.list_files(folder) == ["absent/c", "old/deep/a"]


def test_join_keeps_the_scheme() -> None:
    assert storage.join("gs://bucket/runs", "one", "bundle") == "gs://bucket/runs/one/bundle"
    assert storage.join("runs", "one") == "runs/one"


def test_join_escapes_for_uris_alone() -> None:
    assert (
        storage.join("gs://bucket/my%20runs", "a b/é#1", "100%25") == "gs://bucket/my%20runs/a%20b/%C3%A9%231/100%2525"
    )
    assert storage.join("my runs", "a b/é#1", "100%25") == "my runs/a b/é#1/100%25"


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute("runs") == f"{tmp_path}/runs"
    assert storage.absolute(Path("runs")) == f"{tmp_path}/runs"
    assert storage.absolute("~/runs") == f"{tmp_path}/home/runs"
    assert storage.absolute("gs://bucket/runs/") == "gs://bucket/runs"


def test_relative_paths_are_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("sub/a", b"x")
    assert (tmp_path / "sub" / "a").read_bytes() == b"x"


def test_absent_file(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "absent"))


def test_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="ftp://host/a: not a location that can be opened"):
        storage.exists("ftp://host/a")


def test_relative_output_is_refused_in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where `ray job submit` has it start: in a copy of the code, which goes with the cluster."""
    monkeypatch.chdir(tmp_path)
    assert storage.output_at("--output", "runs") == str(tmp_path / "runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="--output runs: in a Ray job, name an absolute folder"):
        storage.output_at("--output", "runs")
    for fine in (str(tmp_path), "gs://bucket/runs"):
        assert storage.output_at("--output", fine) == fine


def test_relative_input_that_a_job_has_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.input_at("--data", "data") == str(tmp_path / "data")  # whoever reads it says what is wrong
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match=r"--data data: not in the job's copy of the code; .* name an absolute folder"):
        storage.input_at("--data", "data")
    (tmp_path / "data").mkdir()
    for fine in ("data", str(tmp_path / "absent"), "gs://bucket/data"):
        assert storage.input_at("--data", fine) == storage.absolute(fine)


def test_home_of_nobody_is_told_and_a_path_that_must_be_local_is_no_uri(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.absolute("~/data") == str(tmp_path / "data")
    assert storage.local_path("--output", "~/data") == tmp_path / "data"
    for use in (storage.absolute, lambda path: storage.output_at("--output", path), storage.with_home):
        with pytest.raises(UsageError, match=r"^~no-such-user/data: .* has no such home; write the path in full"):
            use("~no-such-user/data")
    with pytest.raises(UsageError, match=r"--output gs://bucket/x: takes a path on this machine, not a URI"):
        storage.local_path("--output", "gs://bucket/x")

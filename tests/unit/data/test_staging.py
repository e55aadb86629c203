import hashlib
import multiprocessing
import shutil
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import pytest

from caption_ray.data.shards import ShardFile
from caption_ray.data.staging import StagedShard, _copy, check_stage
from caption_ray.errors import UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


def shard(tmp_path: Path, stage: str | None) -> StagedShard:
    source = tmp_path / "shared" / "train-00000.parquet"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = ShardFile(name=source.name, num_rows=1, num_bytes=len(CONTENT), sha256=digest)
    return StagedShard(location=str(source), file=file, stage=stage)


def test_without_a_folder_the_shard_is_read_where_it_is(tmp_path: Path) -> None:
    assert shard(tmp_path, None).local() == str(tmp_path / "shared" / "train-00000.parquet")


def test_a_shard_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    staged = shard(tmp_path, "$NODE_DISK/shards")
    copy = Path(staged.local())
    assert copy.parent == tmp_path / "disk" / "shards"
    assert copy.name == f"{staged.file.sha256[:16]}-train-00000.parquet"
    assert copy.read_bytes() == CONTENT
    (tmp_path / "shared" / "train-00000.parquet").unlink()  # the copy is all that is read from here on
    assert staged.local() == str(copy)


def test_a_copy_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    staged = shard(tmp_path, str(tmp_path / "disk"))
    copy = Path(staged.local())
    copy.write_bytes(CONTENT[:1000])
    assert Path(staged.local()).read_bytes() == CONTENT


def copy_in_a_process(staged: str) -> bytes:
    return Path(StagedShard.model_validate_json(staged).local()).read_bytes()


def test_processes_that_come_at_once_make_one_copy(tmp_path: Path) -> None:
    staged = shard(tmp_path, str(tmp_path / "disk")).model_dump_json()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(copy_in_a_process, [staged] * 6, chunksize=1) == [CONTENT] * 6
    assert len(list((tmp_path / "disk").glob("*.parquet"))) == 1
    assert list((tmp_path / "disk").glob("*.partial")) == []


def test_who_waited_for_a_copy_does_not_make_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = shard(tmp_path, str(tmp_path / "disk"))
    made: list[Path] = []

    def copy_slowly(location: str, target: Path) -> None:
        made.append(target)
        time.sleep(0.2)
        _copy(location, target)

    monkeypatch.setattr("caption_ray.data.staging._copy", copy_slowly)
    with ThreadPool(4) as pool:
        found = pool.map_async(lambda _: staged.local(), range(4), chunksize=1).get(timeout=30)
    assert [str(target) for target in made] == list(set(found))


def test_copy_is_not_there_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = shard(tmp_path, str(tmp_path / "disk"))

    def copy_in_two(_: object, sink: BinaryIO, __: int) -> None:
        sink.write(CONTENT[:1000])
        sink.flush()
        assert list((tmp_path / "disk").glob("*.parquet")) == []
        sink.write(CONTENT[1000:])

    monkeypatch.setattr(shutil, "copyfileobj", copy_in_two)
    assert Path(staged.local()).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    staged = shard(tmp_path, str(tmp_path / "disk"))
    with pytest.raises(UsageError, match=r"--stage .*disk: .*train-00000.parquet cannot be copied"):
        staged.local()


def test_a_variable_that_the_node_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    with pytest.raises(UsageError, match=r"--stage \$NODE_DISK/shards: .* has no such variable"):
        shard(tmp_path, "$NODE_DISK/shards").local()


def test_home_is_that_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path(shard(tmp_path, "~/disk").local()).parent == tmp_path / "home" / "disk"


@pytest.mark.parametrize("stage", ["disk", "./disk", "", "gs://bucket/disk"])
def test_a_folder_that_each_process_would_see_elsewhere_is_refused(stage: str) -> None:
    with pytest.raises(UsageError, match=f"--stage {stage}: names no place on a node's disk; begin it with"):
        check_stage(stage)


@pytest.mark.parametrize("stage", [None, "/disk", "~", "~/disk", "$TMPDIR/disk", "${TMPDIR}/disk"])
def test_a_folder_that_a_node_can_find_will_do(stage: str | None) -> None:
    check_stage(stage)


def test_an_unknown_home_is_named(tmp_path: Path) -> None:
    for staging in (shard(tmp_path, "~no-such-user/disk").local, lambda: check_stage("~no-such-user/disk")):
        with pytest.raises(UsageError, match=r"--stage ~no-such-user/disk: .* has no such home"):
            staging()


def test_disk_that_is_full_keeps_no_half_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: object, sink: BinaryIO, __: int) -> None:
        sink.write(CONTENT[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(UsageError, match="No space left on device; name a folder on a disk of the node with room"):
        shard(tmp_path, str(tmp_path / "disk")).local()
    assert [path.suffix for path in (tmp_path / "disk").iterdir()] == [".lock"]


def test_shard_that_was_written_anew_is_not_handed_out(tmp_path: Path) -> None:
    staged = shard(tmp_path, str(tmp_path / "disk"))
    Path(staged.location).write_bytes(CONTENT[:100])
    with pytest.raises(UsageError, match="is 100 bytes long, and its manifest said 1,048,576: it was written anew"):
        staged.local()
    assert [path.suffix for path in (tmp_path / "disk").iterdir()] == [".lock"]

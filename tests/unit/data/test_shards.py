import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caption_ray import storage
from caption_ray.data.shards import (
    MANIFEST_NAME,
    PICTURE_SCHEMA,
    VOCABULARY_NAME,
    DatasetManifest,
    ShardFile,
    ShardWriter,
    SplitFiles,
    digest_files,
    first_pictures,
    load_manifest,
    read_vocabulary,
)
from caption_ray.errors import DatasetError

MIB = 1 << 20
VOCABULARY = '{"words": ["café"]}'.encode()
SCHEMA = pa.schema([("name", pa.string()), ("image", pa.large_binary())])


def make_table(sizes: Sequence[int], first: int = 0) -> pa.Table:
    names = [f"{first + index:04d}.jpg" for index in range(len(sizes))]
    return pa.table({"name": names, "image": pa.array([bytes(size) for size in sizes], pa.large_binary())})


def write(folder: Path, tables: Sequence[pa.Table], max_bytes: int = 96 * MIB) -> list[ShardFile]:
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(str(folder), "train", SCHEMA, max_bytes=max_bytes) as writer:
        for table in tables:
            writer.append(table)
    return writer.files


def test_row_groups_hold_256_rows_at_most(tmp_path: Path) -> None:
    (file,) = write(tmp_path, [make_table([3] * 600)])

    parquet = pq.ParquetFile(tmp_path / "train-00000.parquet")
    groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
    assert groups == [256, 256, 88]
    assert file.num_rows == 600


def test_row_groups_hold_16_mib_at_most(tmp_path: Path) -> None:
    # Five pictures of 3 MiB make 15 MiB, a sixth would make 18.
    write(tmp_path, [make_table([3 * MIB] * 11)])

    parquet = pq.ParquetFile(tmp_path / "train-00000.parquet")
    groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
    assert groups == [5, 5, 1]


def test_files_roll_over_at_their_limit(tmp_path: Path) -> None:
    # Four pictures of 1 MiB, each with a name, pass 4 MiB: three go into a file.
    files = write(tmp_path, [make_table([MIB] * 10)], max_bytes=4 * MIB)

    assert [(file.name, file.num_rows) for file in files] == [
        ("train-00000.parquet", 3),
        ("train-00001.parquet", 3),
        ("train-00002.parquet", 3),
        ("train-00003.parquet", 1),
    ]
    names = [name for file in files for name in pq.read_table(tmp_path / file.name)["name"].to_pylist()]
    assert names == [f"{index:04d}.jpg" for index in range(10)]


def test_a_picture_larger_than_a_file_still_gets_one(tmp_path: Path) -> None:
    files = write(tmp_path, [make_table([10, 2 * MIB, 10])], max_bytes=MIB)

    assert [file.num_rows for file in files] == [1, 1, 1]


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    (file,) = write(tmp_path, [make_table([5, 0, 7])])

    content = (tmp_path / file.name).read_bytes()
    assert file.num_bytes == len(content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_the_footer_holds_no_copies_of_pictures(tmp_path: Path) -> None:
    (file,) = write(tmp_path, [make_table([100_000])])

    assert 100_000 < file.num_bytes < 102_000


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, [make_table([])]) == []
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 299), max_size=8))
def test_files_do_not_depend_on_how_the_rows_come(tmp_path: Path, cuts: set[int]) -> None:
    whole = make_table([index % 7 for index in range(300)])
    edges = [0, *sorted(cuts), 300]
    pieces = [whole.slice(start, end - start) for start, end in pairwise(edges)]

    assert write(tmp_path / "pieces", pieces, 3000) == write(tmp_path / "whole", [whole], 3000)


def test_columns_are_put_in_order_and_others_dropped(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"]), "error": [None], "name": ["a.jpg"]})

    write(tmp_path, [table])

    assert pq.read_schema(tmp_path / "train-00000.parquet").equals(SCHEMA)


def test_an_exception_leaves_no_finished_file(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), "train", SCHEMA, max_bytes=10)

    def fail() -> None:
        writer.append(make_table([100, 100]))  # the second picture sends the first to the file
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), writer:
        fail()

    assert writer.files == []


def test_the_digest_is_that_of_the_sorted_digests() -> None:
    files = [
        ShardFile(name=f"train-{index}.parquet", num_rows=1, num_bytes=1, sha256=digest)
        for index, digest in enumerate(["bb", "aa"])
    ]

    assert digest_files(files) == hashlib.sha256(b"aa\nbb").hexdigest()
    assert digest_files(reversed(files)) == digest_files(files)


def make_dataset(folder: Path, sizes: Sequence[int] = (4, 5), max_bytes: int = 96 * MIB) -> DatasetManifest:
    files = tuple(write(folder, [make_table(sizes)], max_bytes))
    (folder / VOCABULARY_NAME).write_bytes(VOCABULARY)
    manifest = DatasetManifest(
        layout="kaggle",
        splits={"train": SplitFiles(num_pictures=len(sizes), num_captions=5 * len(sizes), files=files)},
        num_pictures=len(sizes),
        num_captions=5 * len(sizes),
        vocabulary_size=4,
        num_left_out=0,
        vocabulary_sha256=hashlib.sha256(VOCABULARY).hexdigest(),
        digest=digest_files(files),
    )
    storage.write_text(str(folder / MANIFEST_NAME), manifest.model_dump_json())
    return manifest


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 10, 12])
def test_first_pictures_are_as_many_as_asked_for_however_few_are_in_a_shard(count: int, tmp_path: Path) -> None:
    sizes = range(1, 11)
    manifest = make_dataset(tmp_path, sizes, max_bytes=20)
    assert len(manifest.splits["train"].files) > 3
    found = first_pictures(str(tmp_path), "train", count)
    assert list(found) == [f"{index:04d}.jpg" for index in range(10)][:count]
    assert [len(data) for data in found.values()] == list(sizes)[:count]


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path)

    assert load_manifest(str(tmp_path)) == manifest


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    (tmp_path / MANIFEST_NAME).unlink()

    with pytest.raises(DatasetError, match=r"not a prepared data set, or .* run jobs/prepare_data\.py"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["absent", "file.txt"])
def test_a_path_without_a_data_set_is_wrong_use(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").touch()

    with pytest.raises(DatasetError, match=f"{name}: no dataset.json: not a prepared data set") as caught:
        load_manifest(str(tmp_path / name))
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    (tmp_path / "train-00000.parquet").unlink()

    with pytest.raises(DatasetError, match=r"train-00000\.parquet is absent") as caught:
        load_manifest(str(tmp_path))
    assert caught.value.exit_code == 1


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    (file,) = make_dataset(tmp_path).splits["train"].files
    path = tmp_path / file.name
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DatasetError, match=rf"is {file.num_bytes - 1} bytes long.*says {file.num_bytes} "):
        load_manifest(str(tmp_path))


def test_the_vocabulary_is_read_as_it_is_written(tmp_path: Path) -> None:
    assert read_vocabulary(str(tmp_path), make_dataset(tmp_path)) == VOCABULARY.decode()


def test_another_vocabulary_than_the_manifests_is_refused(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path)
    (tmp_path / VOCABULARY_NAME).write_bytes(VOCABULARY + b" ")
    with pytest.raises(DatasetError, match=r"vocabulary\.json: not what dataset\.json says .* prepare"):
        read_vocabulary(str(tmp_path), manifest)

    (tmp_path / VOCABULARY_NAME).unlink()
    with pytest.raises(DatasetError, match=r"vocabulary\.json: absent"):
        read_vocabulary(str(tmp_path), manifest)


def test_a_newer_version_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text('{"format_version": 2, "something": "new"}')

    with pytest.raises(DatasetError, match="format version 2, this program reads up to 1"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', "\x00"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)

    with pytest.raises(DatasetError, match="not a manifest"):
        load_manifest(str(tmp_path))


def test_pictures_may_pass_2_gib_in_a_split() -> None:
    assert PICTURE_SCHEMA.field("image").type == pa.large_binary()

from pathlib import Path

import pytest

from caption_ray.data.shards import MANIFEST_NAME, DatasetManifest, ShardFile, SplitFiles
from caption_ray.data.splits import LIST_FILES
from caption_ray.errors import DatasetError, UsageError
from caption_ray.evaluation.pictures import prepared_pictures, source_pictures


def test_split_without_pictures_of_a_prepared_data_set_is_wrong_use(tmp_path: Path) -> None:
    shard = ShardFile(name="train-00000.parquet", num_bytes=5, num_rows=3, sha256="")
    (tmp_path / shard.name).write_bytes(b"shard")
    none = SplitFiles(num_pictures=0, num_captions=0, files=())
    manifest = DatasetManifest(
        layout="kaggle",
        splits={"train": SplitFiles(num_pictures=3, num_captions=6, files=(shard,)), "dev": none, "test": none},
        num_pictures=3,
        num_captions=6,
        vocabulary_size=9,
        num_left_out=0,
        vocabulary_sha256="",
        digest="",
    )
    (tmp_path / MANIFEST_NAME).write_text(manifest.model_dump_json())
    with pytest.raises(UsageError, match="no picture in --split test; it has 3 in train, 0 in dev, 0 in test"):
        prepared_pictures(str(tmp_path), "test")
    assert prepared_pictures(str(tmp_path), "all").count == 3


def test_split_without_pictures_of_a_folder_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,A dog .\n")
    (tmp_path / "a.jpg").touch()
    for split, file in LIST_FILES.items():
        (tmp_path / file).write_text("a.jpg\n" if split == "train" else "")
    with pytest.raises(UsageError, match="no picture in --split test, of 1 with captions"):
        source_pictures(str(tmp_path), "test")
    assert source_pictures(str(tmp_path), "train").count == 1


def test_folder_without_a_caption_that_can_be_used_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\nb.jpg,A dog .\n")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DatasetError, match="no picture has captions; 2 problems in the input"):
        source_pictures(str(tmp_path), "all")

import json
from pathlib import Path
from typing import Any

import pytest

from caption_ray.config import EncoderConfig
from caption_ray.data.feature_manifest import (
    ENCODER_NAME,
    MANIFEST_NAME,
    FeatureManifest,
    cache_key,
    load_feature_manifest,
)
from caption_ray.data.images import PREPROCESSING
from caption_ray.data.shards import DatasetManifest, ShardFile
from caption_ray.errors import FeatureCacheError

ENCODER = EncoderConfig(backbone="resnet18", weights="none")
CONTENT: dict[str, Any] = {
    "encoder": ENCODER,
    "weights_sha256": "ab" * 32,
    "preprocessing": PREPROCESSING,
    "data_digest": "cd" * 32,
    "num_views": 2,
    "view_seed": 5,
}


def dataset(digest: str = "cd" * 32) -> DatasetManifest:
    return DatasetManifest(
        layout="kaggle",
        splits={},
        num_pictures=0,
        num_captions=0,
        vocabulary_size=4,
        num_left_out=0,
        vocabulary_sha256="ef" * 32,
        digest=digest,
    )


def write_cache(folder: Path, **changes: Any) -> FeatureManifest:
    content = CONTENT | changes
    shard = ShardFile(name="train-00000.parquet", num_rows=1, num_bytes=9, sha256="ef" * 32)
    manifest = FeatureManifest(
        key=cache_key(**content),
        shape=(49, 512),
        splits={"train": (shard,), "dev": ()},
        **content,
    )
    (folder / shard.name).write_bytes(b"123456789")
    (folder / ENCODER_NAME).write_bytes(b"weights")
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    return manifest


def refusal(folder: Path, data: DatasetManifest | None = None) -> str:
    with pytest.raises(FeatureCacheError) as caught:
        load_feature_manifest(str(folder), data or dataset())
    assert "make it again with jobs/cache_features.py --overwrite" in str(caught.value)
    assert "prepare the data set" not in str(caught.value)
    return str(caught.value)


def test_whole_cache_of_this_data_set_is_read(tmp_path: Path) -> None:
    manifest = write_cache(tmp_path)
    assert load_feature_manifest(str(tmp_path), dataset()) == manifest
    assert (manifest.picture_format.shape, manifest.picture_format.dtype) == ((49, 512), "<f2")


def test_interrupted_cache(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / MANIFEST_NAME).unlink()
    assert "no features.json: not a feature cache, or its making was interrupted" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["absent", "file.txt"])
def test_a_path_without_a_cache_is_wrong_use(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(FeatureCacheError, match=f"{name}: no features.json: not a feature cache") as caught:
        load_feature_manifest(str(tmp_path / name), dataset())
    assert caught.value.exit_code == 2


def test_missing_and_cut_shards(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / "train-00000.parquet").write_bytes(b"1234")
    assert "train-00000.parquet is 4 bytes long" in refusal(tmp_path)
    (tmp_path / "train-00000.parquet").unlink()
    assert "train-00000.parquet is absent" in refusal(tmp_path)


def test_missing_encoder(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / ENCODER_NAME).unlink()
    assert "encoder.safetensors is absent, the copy is incomplete" in refusal(tmp_path)


def test_stale_preprocessing(tmp_path: Path) -> None:
    write_cache(tmp_path, preprocessing="centre crop; v0")
    assert "stale: made with preprocessing 'centre crop; v0'" in refusal(tmp_path)


def test_foreign_data_set(tmp_path: Path) -> None:
    write_cache(tmp_path)
    message = refusal(tmp_path, dataset("12" * 32))
    assert "foreign or stale: made from a data set with digest cdcdcdcdcdcd, this one has 121212121212" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_sha256", "00" * 32), ("num_views", 3), ("view_seed", 6), ("key", "00" * 32)],
)
def test_edited_manifest(tmp_path: Path, field: str, value: object) -> None:
    write_cache(tmp_path)
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content | {field: value}))
    assert "its key does not fit what it says: it was edited" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format_version": 2}', "\xff"])
def test_file_that_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content, encoding="latin-1")
    assert "not a manifest that this version reads" in refusal(tmp_path)


def test_key_follows_from_what_decides_the_numbers() -> None:
    key = cache_key(**CONTENT)
    changes = {
        "encoder": EncoderConfig(backbone="resnet34", weights="none"),
        "weights_sha256": "00" * 32,
        "preprocessing": "other",
        "data_digest": "00" * 32,
        "num_views": 3,
        "view_seed": 6,
    }
    others = {cache_key(**(CONTENT | {field: value})) for field, value in changes.items()}
    assert len(others | {key}) == 7
    larger = EncoderConfig(backbone="resnet18", weights="none", image_size=256)
    assert cache_key(**(CONTENT | {"encoder": larger})) != key


def test_key_ignores_what_does_not() -> None:
    # Where the weights lay, and how views would be drawn where there is only one.
    elsewhere = EncoderConfig(backbone="resnet18", weights="weights/resnet18.pth", seed=9)
    assert cache_key(**(CONTENT | {"encoder": elsewhere})) == cache_key(**CONTENT)
    single = CONTENT | {"num_views": 1}
    assert cache_key(**(single | {"view_seed": 6})) == cache_key(**single)


def test_precision_is_part_of_the_key_but_for_single() -> None:
    assert cache_key(**CONTENT) == cache_key(**CONTENT, precision="fp32")
    assert len({cache_key(**CONTENT, precision=precision) for precision in ("fp32", "bf16", "fp16")}) == 3

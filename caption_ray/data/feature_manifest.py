"""What a cache of region features says of itself, and when it is refused."""

import hashlib
import json
from typing import Literal

from pydantic import Field, ValidationError

from caption_ray import storage
from caption_ray.config import EncoderConfig, EncoderPrecision, Settings
from caption_ray.data.images import PREPROCESSING
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.shards import DatasetManifest, ShardFile, check_files
from caption_ray.errors import DatasetError, FeatureCacheError, UsageError

MANIFEST_NAME = "features.json"
ENCODER_NAME = "encoder.safetensors"
_REMEDY = "make it again with jobs/cache_features.py --overwrite"


class FeatureManifest(Settings):
    """What a feature cache holds and what it was made from."""

    format_version: Literal[1] = 1
    key: str = Field(description="`cache_key` of what is below.")
    encoder: EncoderConfig
    weights_sha256: str = Field(description="Digest of the encoder's weights, by name and value.")
    preprocessing: str = Field(description="data.images.PREPROCESSING when the cache was made.")
    data_digest: str = Field(description="Digest of the prepared data set.")
    precision: EncoderPrecision = Field("fp32", description="Number format that the encoder computed in.")
    num_views: int = Field(ge=1, description="Views a picture: itself, then random crops and mirrorings.")
    view_seed: int = Field(ge=0, description="Seed of the crops and mirrorings.")
    shape: tuple[int, int] = Field(description="Regions and features of a grid; float16, little-endian.")
    splits: dict[str, tuple[ShardFile, ...]] = Field(description="Shards by split, in the data set's order.")

    @property
    def picture_format(self) -> PictureFormat:
        """How the picture columns are read."""
        return PictureFormat(shape=self.shape, dtype="<f2")


def cache_key(
    *,
    encoder: EncoderConfig,
    weights_sha256: str,
    preprocessing: str,
    data_digest: str,
    num_views: int,
    view_seed: int,
    precision: EncoderPrecision = "fp32",
) -> str:
    """Return the SHA-256 over everything that decides the cached numbers."""
    parts = {
        "backbone": encoder.backbone,
        "image_size": encoder.image_size,
        "weights": weights_sha256,
        "preprocessing": preprocessing,
        "data": data_digest,
        "views": [num_views, view_seed if num_views > 1 else 0],
        # Left out where it is as it was before there was a choice, for the keys of those caches.
        **({} if precision == "fp32" else {"precision": precision}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_feature_manifest(folder: str, data: DatasetManifest) -> FeatureManifest:
    """Read the manifest of the cache in `folder` and check that it is whole and made from `data` by this version.

    Raises FeatureCacheError with the reason where it is interrupted, damaged, stale or foreign.
    """
    path = storage.join(folder, MANIFEST_NAME)
    try:
        manifest = FeatureManifest.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FeatureCacheError(
            f"{folder}: no {MANIFEST_NAME}: not a feature cache, or its making was interrupted; {_REMEDY}",
            exit_code=UsageError.exit_code,
        ) from error
    except ValidationError as error:
        raise FeatureCacheError(f"{path}: not a manifest that this version reads ({error}); {_REMEDY}") from error
    if manifest.preprocessing != PREPROCESSING:
        raise FeatureCacheError(
            f"{folder}: stale: made with preprocessing {manifest.preprocessing!r}, this version has "
            f"{PREPROCESSING!r}; {_REMEDY}"
        )
    if manifest.data_digest != data.digest:
        raise FeatureCacheError(
            f"{folder}: foreign or stale: made from a data set with digest {manifest.data_digest[:12]}, this one "
            f"has {data.digest[:12]}; {_REMEDY} for this data set"
        )
    expected = cache_key(
        encoder=manifest.encoder,
        weights_sha256=manifest.weights_sha256,
        preprocessing=manifest.preprocessing,
        data_digest=manifest.data_digest,
        num_views=manifest.num_views,
        view_seed=manifest.view_seed,
        precision=manifest.precision,
    )
    if manifest.key != expected:
        raise FeatureCacheError(f"{path}: its key does not fit what it says: it was edited; {_REMEDY}")
    try:
        check_files(
            folder, [file for files in manifest.splits.values() for file in files], f"copy it again, or {_REMEDY}"
        )
    except DatasetError as error:
        raise FeatureCacheError(str(error)) from error
    if not storage.exists(storage.join(folder, ENCODER_NAME)):
        raise FeatureCacheError(f"{folder}: {ENCODER_NAME} is absent, the copy is incomplete; {_REMEDY}")
    return manifest

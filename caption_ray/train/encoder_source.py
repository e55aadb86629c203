"""Which encoder a run goes with: the settings' own, or the one that made its cached features."""

from dataclasses import dataclass

import safetensors.torch

from caption_ray import storage
from caption_ray.config import EncoderConfig
from caption_ray.data.feature_manifest import ENCODER_NAME, FeatureManifest, load_feature_manifest
from caption_ray.data.shards import DatasetManifest
from caption_ray.errors import FeatureCacheError, UsageError
from caption_ray.model.encoder import Encoder, build_encoder, weights_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSource:
    """A run's encoder and, with cached features, their manifest."""

    config: EncoderConfig
    encoder: Encoder
    features: FeatureManifest | None


def find_encoder(
    asked: EncoderConfig, preset: EncoderConfig, data: DatasetManifest, features: str | None
) -> EncoderSource:
    """Return the encoder of a run on `data`.

    With cached `features` it is theirs: settings that are as the preset has them give way, others must agree.
    Raises FeatureCacheError for a stale or foreign cache, UsageError for settings that contradict it.
    """
    if features is None:
        return EncoderSource(config=asked, encoder=build_encoder(asked), features=None)
    manifest = load_feature_manifest(features, data)
    for field in ("backbone", "weights", "image_size", "finetune_stages"):
        wanted, cached = getattr(asked, field), getattr(manifest.encoder, field)
        if wanted not in (cached, getattr(preset, field)):
            raise UsageError(
                f"encoder.{field}: {wanted!r}, but the features in {features} were made with {cached!r}; drop the "
                "setting, or make other features, or train without --features"
            )
    return EncoderSource(config=manifest.encoder, encoder=load_cache_encoder(features, manifest), features=manifest)


def load_cache_encoder(folder: str, manifest: FeatureManifest) -> Encoder:
    """Return the encoder that made a cache, from the weights kept in it. Raises FeatureCacheError."""
    path = storage.join(folder, ENCODER_NAME)
    encoder = build_encoder(manifest.encoder, load_weights=False)
    try:
        encoder.load_state_dict(safetensors.torch.load(storage.read_bytes(path)))
    except (FileNotFoundError, RuntimeError) as error:
        raise FeatureCacheError(f"{path}: {error}; make the cache again with jobs/cache_features.py") from error
    if weights_digest(encoder) != manifest.weights_sha256:
        raise FeatureCacheError(
            f"{path}: not the weights that made this cache (digest differs); make it again with jobs/cache_features.py"
        )
    return encoder

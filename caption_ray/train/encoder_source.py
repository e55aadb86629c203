"""Which encoder a run goes with: the settings' own, or the one that made its cached features; and its features."""

import logging
from dataclasses import dataclass, replace

import safetensors
import safetensors.torch

from caption_ray import storage
from caption_ray.config import EncoderConfig
from caption_ray.data.batches import CaptionBatch
from caption_ray.data.feature_manifest import ENCODER_NAME, FeatureManifest, load_feature_manifest
from caption_ray.data.shards import DatasetManifest
from caption_ray.errors import FeatureCacheError, UsageError
from caption_ray.model.encoder import Encoder, build_encoder, weights_digest
from caption_ray.model.frozen_encoder import EncoderPass
from caption_ray.weights import to_safetensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSource:
    """A run's encoder and, with cached features, their manifest."""

    config: EncoderConfig
    encoder: Encoder
    weights_sha256: str
    features: FeatureManifest | None


def find_encoder(
    asked: EncoderConfig, preset: EncoderConfig, data: DatasetManifest, features: str | None
) -> EncoderSource:
    """Return the encoder of a run on `data`.

    With cached `features` it is theirs: settings that are as the preset has them give way, others must agree.
    Raises FeatureCacheError for a stale or foreign cache, UsageError for settings that contradict it.
    """
    if features is None:
        encoder = build_encoder(asked)
        return EncoderSource(config=asked, encoder=encoder, weights_sha256=weights_digest(encoder), features=None)
    manifest = load_feature_manifest(features, data)
    for field in EncoderConfig.model_fields:
        wanted, cached = getattr(asked, field), getattr(manifest.encoder, field)
        if wanted not in (cached, getattr(preset, field)):
            raise UsageError(
                f"encoder.{field}: {wanted!r}, but the features in {features} were made with {cached!r}; drop the "
                "setting, or make other features, or train without --features"
            )
    if manifest.encoder.backbone != asked.backbone:
        logger.info("the encoder is that of the features: %s", manifest.encoder.backbone)
    remedy = "make the cache again with jobs/cache_features.py --overwrite"
    encoder = load_encoder(features, manifest.encoder, manifest.weights_sha256, remedy)
    return EncoderSource(
        config=manifest.encoder, encoder=encoder, weights_sha256=manifest.weights_sha256, features=manifest
    )


def with_features(batch: CaptionBatch, encode: EncoderPass | None) -> CaptionBatch:
    """Return the batch with a frozen encoder's features in the place of its pictures; None leaves it as it is."""
    if encode is None:
        return batch
    features = encode(batch.pictures).clone()  # what was made in inference mode cannot be trained on
    return replace(batch, pictures=features)


def save_encoder(folder: str, encoder: Encoder) -> None:
    """Write an encoder's weights to a folder, for `load_encoder`."""
    storage.write_bytes(storage.join(folder, ENCODER_NAME), to_safetensors(encoder.state_dict()))


def load_encoder(folder: str, config: EncoderConfig, weights_sha256: str, remedy: str) -> Encoder:
    """Return the encoder whose weights lie in a folder. Raises FeatureCacheError, with what to do about it."""
    path = storage.join(folder, ENCODER_NAME)
    encoder = build_encoder(config, load_weights=False)
    try:
        encoder.load_state_dict(safetensors.torch.load(storage.read_bytes(path)))
    except (FileNotFoundError, RuntimeError, safetensors.SafetensorError) as error:
        raise FeatureCacheError(f"{path}: {error}; {remedy}") from error
    if weights_digest(encoder) != weights_sha256:
        raise FeatureCacheError(f"{path}: not the weights that were put there (digest differs); {remedy}")
    return encoder

"""A training run of seconds, on drawn pictures."""

from caption_ray.config import (
    DecodeOptions,
    EncoderConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    Precision,
    TrainingConfig,
)
from caption_ray.data.feature_cache import cache_features
from caption_ray.model.encoder import build_encoder, weights_digest
from caption_ray.model.frozen_encoder import FrozenEncoder

ENCODER = EncoderConfig(backbone="resnet18", weights="none", image_size=64)
EXPERIMENT = Experiment(
    encoder=ENCODER,
    model=ModelConfig(embedding_size=16, hidden_size=24, attention_size=8, dropout=0.3, standardise_features=True),
    optimizer=OptimizerConfig(learning_rate=5e-3),
    # The tolerances of comparisons are those of single precision, whatever the machine would choose.
    training=TrainingConfig(
        epochs=3, batch_size=20, average_decay=0.9, precision="fp32", shuffle_buffer=64, patience=0
    ),
    decode=DecodeOptions(beam_width=2, max_words=12),
)


def make_cache(
    data: str, output: str, config: EncoderConfig = ENCODER, num_views: int = 1, precision: Precision = "fp32"
) -> str:
    encoder = build_encoder(config)
    cache_features(
        data,
        output,
        config,
        FrozenEncoder(encoder),
        weights=encoder.state_dict(),
        weights_sha256=weights_digest(encoder),
        num_views=num_views,
        precision=precision,
    )
    return output


def numbers(metrics: dict[str, object]) -> dict[str, object]:
    """Return what must not depend on the clock."""
    return {name: value for name, value in metrics.items() if "per_s" not in name and "seconds" not in name}

"""Whole experiments by name; a variant takes one and changes a field."""

from collections.abc import Callable

from caption_ray.config import (
    DecodeOptions,
    EncoderConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)


def palmetto() -> Experiment:
    """Return the original run: ResNet50, sizes 256/256, one caption per picture, batches of 16, 100 epochs."""
    return Experiment(
        encoder=EncoderConfig(backbone="resnet50", weights="imagenet"),
        model=ModelConfig(embedding_size=256, hidden_size=256, attention_size=256, dropout=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
        training=TrainingConfig(epochs=100, batch_size=16, captions_per_picture=1, select_by="bleu_4", patience=0),
        decode=DecodeOptions(beam_width=3),
    )


def flickr8k() -> Experiment:
    """Return the recommended recipe for Flickr8k, found on its train and dev splits."""
    return Experiment(
        model=ModelConfig(
            embedding_size=300,
            hidden_size=512,
            attention_size=256,
            feature_size=512,
            dropout=0.5,
            embedding_dropout=0.3,
            feature_dropout=0.3,
            standardise_features=True,
            deep_output=True,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", weight_decay=0.01),
        training=TrainingConfig(
            epochs=14,
            batch_size=80,
            augment=True,
            label_smoothing=0.05,
            average_decay=0.998,
            select_by="cider",
            patience=4,
        ),
        decode=DecodeOptions(beam_width=5, length_penalty=0.5),
    )


def quickstart() -> Experiment:
    """Return the small model that the quick start trains on drawn shapes, without pretrained weights."""
    return Experiment(
        encoder=EncoderConfig(backbone="resnet18", weights="none"),
        model=ModelConfig(
            embedding_size=64, hidden_size=128, attention_size=128, dropout=0.1, standardise_features=True
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine"),
        # The score that jobs/quickstart.py holds it to was set in single precision.
        training=TrainingConfig(epochs=11, batch_size=20, precision="fp32", select_by="bleu_4", patience=0),
        decode=DecodeOptions(beam_width=3),
    )


PRESETS: dict[str, Callable[[], Experiment]] = {
    "palmetto": palmetto,
    "flickr8k": flickr8k,
    "quickstart": quickstart,
}

"""What a run trains on: its data set, its encoder, and both splits' pictures as Ray datasets."""

import logging
from dataclasses import dataclass

from caption_ray import storage
from caption_ray.config import Experiment
from caption_ray.data.pipeline import Feed, cached_feed, stream_feed
from caption_ray.data.shards import DatasetManifest, first_pictures, load_manifest
from caption_ray.errors import DatasetError, UsageError
from caption_ray.train.encoder_source import EncoderSource, find_encoder
from caption_ray.train.setup import FeatureStatistics, FeedPlan, measure_features

logger = logging.getLogger(__name__)

NUM_MEASURED = 128
"""Training pictures whose features are measured for `model.standardise_features`."""

_FEW_CAPTIONS = 0.75
"""Of `training.captions_per_picture`: with fewer a picture, steps are clearly smaller than asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """A data set and perhaps its cached features, read and checked; locations are absolute."""

    data: str
    features: str | None
    manifest: DatasetManifest
    source: EncoderSource
    experiment: Experiment
    """As asked for, but for the encoder, which is that of the features where there are any."""


def find_inputs(experiment: Experiment, preset: Experiment, data: str, features: str | None) -> RunInputs:
    """Return what an experiment trains on. Raises UsageError, DatasetError, FeatureCacheError."""
    data = storage.input_at("--data", data)
    manifest = load_manifest(data)
    for split in ("train", "dev"):
        if manifest.splits[split].num_pictures == 0:
            raise DatasetError(
                f"{data}: no picture in the {split} split; training needs train and dev pictures: name some in "
                f"Flickr_8k.{split}Images.txt beside the captions, and prepare the data set again"
            )
    training = experiment.training
    each = manifest.splits["train"].num_captions / manifest.splits["train"].num_pictures
    if each < _FEW_CAPTIONS * training.captions_per_picture:
        logger.warning(
            "training.batch_size %d will be about %.0f: a step takes %d pictures, which have %.1f captions each; set "
            "training.captions_per_picture nearer to that",
            training.batch_size,
            training.batch_size * each / training.captions_per_picture,
            training.batch_size // training.captions_per_picture,
            each,
        )
    features = None if features is None else storage.input_at("--features", features)
    source = find_encoder(experiment.encoder, preset.encoder, manifest, features)
    experiment = experiment.model_copy(update={"encoder": source.config})
    return RunInputs(data=data, features=features, manifest=manifest, source=source, experiment=experiment)


def check_selection(inputs: RunInputs) -> None:
    """Raise UsageError where the dev score cannot tell one epoch from another."""
    if inputs.manifest.splits["dev"].num_pictures == 1 and inputs.experiment.training.select_by == "cider":
        raise UsageError(
            f"{inputs.data}: CIDEr of a single dev picture is always 0, and chooses no epoch: train with --training."
            "select-by bleu_4, or name more pictures in Flickr_8k.devImages.txt and prepare the data set again"
        )


def build_feeds(inputs: RunInputs, stage: str | None = None) -> dict[str, Feed]:
    """Return the pictures to train on, and those of dev. Needs Ray.

    stage: folder on each node, to which shards are copied once (see data.staging).
    """
    experiment, manifest, features = inputs.experiment, inputs.manifest, inputs.features
    augment, cached = experiment.training.augment, inputs.source.features
    if cached is not None and features is not None:
        if augment and cached.num_views == 1:
            logger.warning(
                "training.augment is without effect: the features in %s have one view a picture; "
                "jobs/cache_features.py makes more with --num-views",
                features,
            )
        return {
            split: cached_feed(features, cached, split, augment and split == "train", stage)
            for split in ("train", "dev")
        }
    side = experiment.encoder.image_size
    return {
        split: stream_feed(inputs.data, manifest, split, side, augment and split == "train", stage)
        for split in ("train", "dev")
    }


def measure(inputs: RunInputs) -> FeatureStatistics | None:
    """Return what features are standardised by, where the experiment asks for it."""
    if not inputs.experiment.model.standardise_features:
        return None
    pictures = first_pictures(inputs.data, "train", NUM_MEASURED)
    return measure_features(inputs.source.encoder, list(pictures.values()))


def describe(feed: Feed) -> FeedPlan:
    """Return what a worker is told of a feed."""
    return FeedPlan(
        shape=feed.picture_format.shape,
        dtype=feed.picture_format.dtype,
        crop_to=feed.crop_to,
        resident=feed.resident,
    )

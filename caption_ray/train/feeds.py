"""The feeds of a training run: pictures or cached features, and what its workers are told of them."""

import logging
from collections.abc import Mapping

from caption_ray.config import Experiment
from caption_ray.data.pipeline import Feed, cached_feed, stream_feed
from caption_ray.data.shards import DatasetManifest
from caption_ray.train.encoder_source import EncoderSource
from caption_ray.train.setup import FeedPlan

logger = logging.getLogger(__name__)


def build_feeds(
    experiment: Experiment,
    manifest: DatasetManifest,
    source: EncoderSource,
    *,
    data: str,
    features: str | None,
    stage: str | None,
) -> Mapping[str, Feed]:
    """Return the feeds of train and dev: of the cached features where there are any, else of the data set."""
    augment = experiment.training.augment
    if source.features is not None and features is not None:
        if augment and source.features.num_views == 1:
            logger.warning(
                "training.augment is without effect: the features in %s have one view a picture; "
                "jobs/cache_features.py makes more with --num-views",
                features,
            )
        cached = source.features
        return {
            split: cached_feed(features, cached, split, augment and split == "train", stage)
            for split in ("train", "dev")
        }
    side = experiment.encoder.image_size
    return {
        split: stream_feed(data, manifest, split, side, augment and split == "train", stage)
        for split in ("train", "dev")
    }


def describe(feed: Feed) -> FeedPlan:
    """Return what a worker is told of a feed."""
    return FeedPlan(
        shape=feed.picture_format.shape,
        dtype=feed.picture_format.dtype,
        crop_to=feed.crop_to,
        resident=feed.resident,
    )

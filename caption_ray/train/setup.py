"""What a training worker is told, and the model that it builds from that; no Ray."""

from collections.abc import Sequence

import torch
from pydantic import Field

from caption_ray.config import Experiment, Settings
from caption_ray.data.batches import CaptionBatch, stack_pictures
from caption_ray.data.images import decode_square
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.model.encoder import Encoder
from caption_ray.model.frozen_encoder import FrozenEncoder
from caption_ray.train.steps import idle_batch

DDP_OPTIONS = {"gradient_as_bucket_view": True, "bucket_cap_mb": 8}
"""How DistributedDataParallel goes about a decoder of some ten million weights: buckets small enough for the first to
be on their way while the recurrence runs backwards, and no copy of the gradients. Two workers of a core each did 6 %
more captions/s than by default; `static_graph` took 2 % of it away."""


class FeedPlan(Settings):
    """How a worker reads the pictures of one split (see data.pipeline.Feed)."""

    shape: tuple[int, ...]
    dtype: str
    crop_to: int | None = None
    resident: bool = False


class FeatureStatistics(Settings):
    """Mean and standard deviation of each encoder feature over the regions of some training pictures, F each."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@torch.inference_mode()
def measure_features(encoder: Encoder, pictures: Sequence[bytes]) -> FeatureStatistics:
    """Return the statistics of features over picture files."""
    squares = [decode_square(data, encoder.image_size) for data in pictures]
    encode = FrozenEncoder(encoder).on(torch.device("cpu"), "fp32")
    grids = torch.cat([encode(stack_pictures(squares[at : at + 16])) for at in range(0, len(squares), 16)])
    # A feature that never moves stays at zero, rather than have its rounding blown up.
    deviation = grids.std((0, 1), unbiased=False).clamp_min(1e-3)  # of a single region too
    return FeatureStatistics(mean=tuple(grids.mean((0, 1)).tolist()), deviation=tuple(deviation.tolist()))


class RunPlan(Settings):
    """All that a worker needs to know; travels as JSON. Locations are absolute."""

    name: str
    experiment: Experiment
    run_folder: str = Field(description="RUNS/NAME: checkpoints, TensorBoard, bundle.")
    data: str = Field(description="Prepared data set.")
    vocabulary: str = Field(description="Content of the data set's vocabulary.json.")
    cached: bool = Field(description="Pictures come as region features; the workers need no encoder.")
    encoder_sha256: str = Field(description="Digest of the encoder's weights, which lie in the run folder if needed.")
    num_features: int = Field(ge=1, description="Features of a region, F.")
    feature_statistics: FeatureStatistics | None = Field(
        None, description="What to standardise features by, where `model.standardise_features` asks for it."
    )
    gpu_share: float = Field(1.0, gt=0, le=1, description="Part of its GPU's memory that a worker may take.")
    train_feed: FeedPlan
    dev_feed: FeedPlan
    num_train_captions: int = Field(ge=1)
    num_dev_pictures: int = Field(ge=1)
    threads_per_worker: int = Field(ge=0, description="Torch threads of a CPU worker; 0 leaves them alone.")
    resume_from: str | None = Field(
        None, description="Checkpoint to start from where Ray's own record of them was lost."
    )
    stop_files: tuple[str, ...] = Field(description="Files any of which asks the run to save and stop.")


def build_training_model(plan: RunPlan, encoder: Encoder | None, vocabulary_size: int) -> CaptionModel:
    """Return the model to train, its decoder initialised from the seed alone, on the CPU.

    encoder: None where pictures come as features.
    """
    torch.manual_seed(plan.experiment.training.seed)
    decoder = Decoder(plan.experiment.model, plan.num_features, vocabulary_size)
    if plan.feature_statistics is not None:
        decoder.set_feature_statistics(plan.feature_statistics.mean, plan.feature_statistics.deviation)
    return CaptionModel(encoder, decoder)


def idle_batch_of(feed: FeedPlan) -> CaptionBatch:
    """Return what a worker of this feed takes where it has nothing to take (see `steps.idle_batch`)."""
    shape = feed.shape if feed.crop_to is None else (feed.shape[0], feed.crop_to, feed.crop_to)
    return idle_batch(shape, torch.uint8 if feed.dtype == "|u1" else torch.float16)

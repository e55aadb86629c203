"""The model of `scale.py`: what each stage takes of each resource, from rates and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

from decoder_step import VOCABULARY
from floor import work_of_step

from caption_ray.data.pipeline import RESIDENT_SHARE
from caption_ray.model.decoder import Decoder
from caption_ray.presets import flickr8k

ENCODER_GFLOP = {"mobilenet_v2": 0.6, "resnet50": 8.2}
"""Of one picture of 224 x 224: twice the multiplications that torchvision's documentation gives."""

WORDS = 11.8
"""Words and <end> of a caption of Flickr8k."""

VIEWS = 3
"""Of a training picture in the cache."""

ALONE = "scoring dev (one worker)"
"""All workers wait for it."""

DECODER, ALL_REDUCE = "decoder (GPUs)", "all-reduce (network)"
"""One after the other: a step that is recorded as a CUDA graph sums up its gradients after the backward pass."""

CAPTIONS_PER_GPU = 80
"""Of a step, so that the batch grows with the GPUs."""

STORE_SHARE = 0.3
"""Of a node's memory, what Ray's object store may take by default."""

DATA_SETS = {
    "Flickr8k": (6_000, 30_000, 14, 1_000),
    "Flickr30k": (29_000, 145_000, 14, 1_000),
    "COCO": (113_000, 566_000, 14, 5_000),
    "10 million pictures": (10_000_000, 50_000_000, 1, 5_000),
}
"""Training pictures, captions, epochs, dev pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Rates of one core of this machine, and sizes."""

    opened_per_s: float
    """Pictures from JPEG to all views."""
    fed_per_s: float
    scored_per_s: float
    picture_bytes: float
    feature_bytes: float
    caption_bytes: float
    process_bytes: float
    """What this process has taken, which has trained a step of the recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the machines of a cluster do."""

    decoder_tflops: float
    encoder_tflops: float
    gpus_per_node: int
    node_gb: float
    disk_gb_per_s: float
    network_gb_per_s: float
    driver_gb_per_s: float


def training_gflop_per_caption(num_features: int) -> float:
    """Return the work of the recommended recipe on a caption, of 16 pictures with five each."""
    model = flickr8k().model
    size = model.feature_size or num_features
    step = work_of_step(model, size, VOCABULARY, pictures=16, regions=49, words=int(CAPTIONS_PER_GPU * WORDS))
    projection = 2 * 2 * 16 * 49 * num_features * size
    return (step.flops + projection) / CAPTIONS_PER_GPU / 1e9


def is_resident(cache_bytes: float, assumed: Assumed) -> bool:
    """Tell whether features are read once and held, rather than read again in every epoch."""
    return cache_bytes < RESIDENT_SHARE * STORE_SHARE * assumed.node_gb * 1e9


def stages(
    data_set: str, num_gpus: int, backbone: str, measured: Measured, assumed: Assumed
) -> dict[str, dict[str, float]]:
    """Return for each stage what each resource would take alone, hours."""
    pictures, captions, epochs, num_dev = DATA_SETS[data_set]
    nodes = max(1, num_gpus // assumed.gpus_per_node)
    read_per_s = assumed.disk_gb_per_s * 1e9 * nodes
    num_features = int(measured.feature_bytes / 2 / 49)
    weights = sum(p.numel() for p in Decoder(flickr8k().model, num_features, VOCABULARY).parameters())
    steps = num_steps(data_set, num_gpus)
    cache_bytes = pictures * VIEWS * measured.feature_bytes
    passes = 1 if is_resident(cache_bytes, assumed) else epochs  # all views are read, one is taken
    encoder_flops, decoder_flops = (num_gpus * rate * 1e12 for rate in (assumed.encoder_tflops, assumed.decoder_tflops))
    seconds = {
        "cache": {
            "reading (disks)": pictures * measured.picture_bytes / read_per_s,
            "decoding (a core a GPU)": pictures / (measured.opened_per_s * num_gpus),
            "encoder (GPUs)": pictures * VIEWS * ENCODER_GFLOP[backbone] * 1e9 / encoder_flops,
            "writing (one driver)": cache_bytes / (assumed.driver_gb_per_s * 1e9),
        },
        "train": {
            DECODER: captions * epochs * training_gflop_per_caption(num_features) * 1e9 / decoder_flops,
            "feed (a core a GPU)": pictures * epochs / (measured.fed_per_s * num_gpus),
            "reading (disks)": cache_bytes * passes / read_per_s,
            ALONE: epochs * num_dev / measured.scored_per_s,
            ALL_REDUCE: 0.0 if nodes == 1 else steps * 2 * 4 * weights / (assumed.network_gb_per_s * 1e9),
        },
    }
    return {stage: {name: s / 3600 for name, s in parts.items()} for stage, parts in seconds.items()}


def num_steps(data_set: str, num_gpus: int) -> float:
    """Return the optimiser's steps of a training."""
    _, captions, epochs, _ = DATA_SETS[data_set]
    return captions * epochs / CAPTIONS_PER_GPU / num_gpus


def hours(parts: Mapping[str, float]) -> float:
    """Return what a stage takes: as long as what takes longest, and what all wait for."""
    others = [taken for name, taken in parts.items() if name not in (ALONE, DECODER, ALL_REDUCE)]
    return parts.get(ALONE, 0.0) + max(parts.get(DECODER, 0.0) + parts.get(ALL_REDUCE, 0.0), *others)


def node_bytes(data_set: str, num_gpus: int, measured: Measured, assumed: Assumed) -> float:
    """Return the most memory that a node takes in training: of the object store, and of a worker a GPU."""
    cache_bytes, workers = DATA_SETS[data_set][0] * VIEWS * measured.feature_bytes, min(num_gpus, assumed.gpus_per_node)
    if is_resident(cache_bytes, assumed):
        store, buffer = cache_bytes * workers / num_gpus, 0.0
    else:
        store, buffer = STORE_SHARE * assumed.node_gb * 1e9, 2048 * measured.feature_bytes
    return store + workers * (measured.process_bytes + buffer)

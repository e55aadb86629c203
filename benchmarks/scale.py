"""How long and how much memory for larger data sets and more GPUs: `python benchmarks/scale.py --data D --features F`.

A model, not a measurement: rates of one core are measured here, the work is counted, and what a GPU, a disk and a
network do is assumed (see --help). Writes Markdown to standard output; `benchmarks/scale.md` is one run of it.
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from decoder_step import random_batch
from floor import work_of_step

from caption_ray import storage
from caption_ray.config import ModelConfig
from caption_ray.data import images
from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.feature_manifest import load_feature_manifest
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.shards import load_manifest, read_vocabulary
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.loss import caption_loss
from caption_ray.presets import flickr8k
from caption_ray.text.vocabulary import Vocabulary

ENCODER_GFLOP = {"mobilenet_v2": 0.6, "resnet50": 8.2}
"""Of one picture of 224 x 224: twice the multiplications that torchvision's documentation gives."""

WORDS = 11.8
"""Words and <end> of a caption of Flickr8k."""

DATA_SETS = {
    "Flickr8k": (6_000, 30_000, 14),
    "Flickr30k": (29_000, 145_000, 14),
    "COCO": (113_000, 566_000, 14),
    "10 million pictures": (10_000_000, 50_000_000, 1),
}
"""Training pictures, captions, epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Rates of one core of this machine, and sizes."""

    decoded_per_s: float
    fed_per_s: float
    picture_bytes: float
    feature_bytes: float
    caption_bytes: float
    step_overhead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the machines of a cluster do."""

    gpu_tflops: float
    gpus_per_node: int
    disk_gb_per_s: float
    network_gb_per_s: float
    driver_gb_per_s: float


def per_second(run: Callable[[], int]) -> float:
    """Return how many things a second `run` does, which returns their number; in one thread."""
    started = time.perf_counter()
    return run() / (time.perf_counter() - started)


def measure(data: str, features: str) -> Measured:
    """Measure a core on the first pictures of a data set and its cache."""
    manifest = load_manifest(data)
    cached = load_feature_manifest(features, manifest)
    path = storage.join(data, manifest.splits["train"].files[0].name)
    files = next(pq.ParquetFile(path).iter_batches(300, columns=["image"]))["image"].to_pylist()
    feature_path = storage.join(features, cached.splits["train"][0].name)
    columns = ["name", "captions", "picture"]
    table = pq.ParquetFile(feature_path).read_row_group(0, columns=columns)
    plan = BatchPlan(
        picture_format=PictureFormat(shape=cached.shape, dtype="<f2"),
        crop_to=None,
        vocabulary=Vocabulary.from_json(read_vocabulary(data, manifest), "vocabulary.json"),
        captions_per_picture=5,
        groups_per_batch=16,
        shuffle_buffer=256,
        seed=0,
        rank=0,
    )
    parts = list(plan.read([table])) * (1 + 1000 // table.num_rows)
    tracemalloc.start()
    captions = json.loads(storage.read_bytes(storage.join(data, "captions_train.json")))
    caption_bytes = tracemalloc.get_traced_memory()[0] / sum(map(len, captions.values()))
    tracemalloc.stop()
    return Measured(
        decoded_per_s=per_second(lambda: len([images.decode_square(file, 224) for file in files])),
        fed_per_s=per_second(lambda: sum(len(b.pictures) for b in plan.train_batches(parts, 0, resident=True))),
        picture_bytes=sum(map(len, files)) / len(files),
        feature_bytes=2 * cached.shape[0] * cached.shape[1],
        caption_bytes=caption_bytes,
        step_overhead_s=measure_overhead(),
    )


def measure_overhead() -> float:
    """Return the seconds of a training step of 80 captions with a decoder of a few numbers; the best of ten."""
    batch = random_batch(16, 80, seed=0)
    ids, targets = batch.ids % 7, pack_steps(batch.ids[:, 1:], batch.lengths) % 7
    tiny = ModelConfig(embedding_size=2, hidden_size=2, attention_size=2, deep_output=True)
    decoder, features = Decoder(tiny, 2, 7), torch.randn(16, 49, 2)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        logits = decoder(features, ids, batch.lengths, batch.picture_index).logits
        caption_loss(logits, targets)[0].backward()
        optimizer.step()
        taken.append(time.perf_counter() - started)
    return min(taken)


def training_gflop_per_caption(num_features: int) -> float:
    """Return the work of the recommended recipe on a caption, of 16 pictures with five each."""
    model = flickr8k().model
    size = model.feature_size or num_features
    step = work_of_step(model, size, 2540, pictures=16, regions=49, words=int(80 * WORDS))
    projection = 2 * 2 * 16 * 49 * num_features * size
    return (step.flops + projection) / 80 / 1e9


def stages(
    data_set: str, num_gpus: int, backbone: str, measured: Measured, assumed: Assumed
) -> dict[str, dict[str, float]]:
    """Return for each stage what each resource would take alone, hours."""
    pictures, captions, epochs = DATA_SETS[data_set]
    views = 3
    nodes = max(1, num_gpus // assumed.gpus_per_node)
    flops = num_gpus * assumed.gpu_tflops * 1e12
    num_features = int(measured.feature_bytes / 2 / 49)
    weights = sum(p.numel() for p in Decoder(flickr8k().model, num_features, 2540).parameters())
    steps = captions * epochs / 80 / num_gpus  # 80 captions a step on each GPU
    cache_bytes = pictures * views * measured.feature_bytes
    seconds = {
        "cache": {
            "decoding (a core a GPU)": pictures * views / (measured.decoded_per_s * num_gpus),
            "encoder (GPUs)": pictures * views * ENCODER_GFLOP[backbone] * 1e9 / flops,
            "writing (one driver)": cache_bytes / (assumed.driver_gb_per_s * 1e9),
        },
        "train": {
            "decoder (GPUs)": captions * epochs * training_gflop_per_caption(num_features) * 1e9 / flops,
            "calling torch (a core a GPU)": steps * measured.step_overhead_s,
            "feed (a core a GPU)": pictures * epochs / (measured.fed_per_s * num_gpus),
            "reading (disks)": pictures * epochs * measured.feature_bytes / (assumed.disk_gb_per_s * 1e9 * nodes),
            "all-reduce (network)": 0.0 if nodes == 1 else steps * 2 * 4 * weights / (assumed.network_gb_per_s * 1e9),
        },
    }
    return {stage: {name: s / 3600 for name, s in parts.items()} for stage, parts in seconds.items()}


def report(measured: Measured, assumed: Assumed, backbone: str) -> str:
    """Return the model's tables, in Markdown."""
    training = training_gflop_per_caption(int(measured.feature_bytes / 98))
    lines = [
        "# How far it scales: a model",
        "",
        f"Made by `benchmarks/scale.py`, with features of {backbone}, three views a picture, the `flickr8k` recipe.",
        "Nothing here was run at these sizes. Each stage takes as long as what it lacks most; the rest overlaps.",
        "",
        f"Measured on one core: {measured.decoded_per_s:.0f} pictures/s decoded to 224 x 224, "
        "which they have already (larger ones, of 500 x 375, come at a fifth of that), "
        f"{measured.fed_per_s:,.0f} pictures/s from table to batch. A picture has "
        f"{measured.picture_bytes / 1e3:.0f} kB as JPEG and {measured.feature_bytes / 1e3:.0f} kB as features; a "
        f"caption {measured.caption_bytes:.0f} bytes of memory while a data set is prepared. A step of a decoder too "
        f"small to compute anything takes {measured.step_overhead_s * 1e3:.0f} ms, the cost of calling torch. Counted: "
        f"{training:.2f} GFLOP a caption trained on, {ENCODER_GFLOP[backbone]} GFLOP a picture encoded.",
        "",
        f"Assumed: a GPU gives {assumed.gpu_tflops:g} TFLOP/s on this work (a third of a P100's fp32 peak of 9.3); "
        f"{assumed.gpus_per_node} GPUs a node; {assumed.disk_gb_per_s:g} GB/s read "
        f"by a node, {assumed.network_gb_per_s:g} GB/s between nodes; the driver, through which a cache is written, "
        f"{assumed.driver_gb_per_s:g} GB/s.",
        "",
        "| Data set | GPUs | Cache, hours | held up by | Training, hours | held up by | Cache, GB | Captions, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data_set, (pictures, captions, epochs) in DATA_SETS.items():
        for num_gpus in (2, 8, 64):
            found = stages(data_set, num_gpus, backbone, measured, assumed)
            cells = [f"{data_set}, {epochs} epoch(s)", str(num_gpus)]
            for parts in found.values():
                slowest = max(parts, key=lambda name: parts[name])
                cells += [f"{parts[slowest]:.2g}", slowest]
            cells += [
                f"{3 * pictures * measured.feature_bytes / 1e9:,.0f}",
                f"{captions * measured.caption_bytes / 1e9:.2g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The last two columns are the features on disk, and the captions that the one process preparing a data set",
        "holds in memory. A training worker holds 2,048 pictures to draw from, "
        f"{2048 * measured.feature_bytes / 1e9:.2g} GB, whatever the data set.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the model's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared data set")
    parser.add_argument("--features", required=True, help="its feature cache")
    parser.add_argument("--gpu-tflops", type=float, default=3.0, help="what a GPU attains on this work")
    parser.add_argument("--gpus-per-node", type=int, default=2, help="GPUs of a node")
    parser.add_argument("--disk-gb-per-s", type=float, default=1.0, help="what a node reads")
    parser.add_argument("--network-gb-per-s", type=float, default=3.0, help="between nodes")
    parser.add_argument("--driver-gb-per-s", type=float, default=0.5, help="what one process writes of a cache")
    arguments = vars(parser.parse_args())
    torch.set_num_threads(1)
    data, features = (storage.absolute(arguments.pop(name)) for name in ("data", "features"))
    backbone = load_feature_manifest(features, load_manifest(data)).encoder.backbone
    sys.stdout.write(report(measure(data, features), Assumed(**arguments), backbone))


if __name__ == "__main__":
    main()

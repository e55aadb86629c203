"""How long and how much memory for larger data sets and more GPUs: `python benchmarks/scale.py --data D --features F`.

A model, not a measurement: rates of one core are measured here, the work is counted, and what a GPU, a disk and a
network do is assumed (see --help). Writes Markdown to standard output; `benchmarks/scale.md` is one run of it.
"""

import argparse
import io
import json
import platform
import re
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from decoder_step import VOCABULARY, random_batch
from PIL import Image
from scale_model import (
    CAPTIONS_PER_GPU,
    DATA_SETS,
    ENCODER_GFLOP,
    STORE_SHARE,
    VIEWS,
    Assumed,
    Measured,
    hours,
    node_bytes,
    num_steps,
    stages,
    training_gflop_per_caption,
)

from caption_ray import storage
from caption_ray.data import images
from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.feature_manifest import load_feature_manifest
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.pipeline import RESIDENT_SHARE
from caption_ray.data.shards import load_manifest, read_vocabulary
from caption_ray.evaluation.metrics import score_captions
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.loss import caption_loss
from caption_ray.presets import flickr8k
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary


def per_second(run: Callable[[], int]) -> float:
    """Return how many things a second `run` does, which returns their number; in one thread."""
    started = time.perf_counter()
    return run() / (time.perf_counter() - started)


def open_views(file: bytes) -> list[object]:
    """Do what the cache does with a picture before its encoder."""
    picture = images.open_picture(file)
    large = [images.to_square(picture, images.padded_side(224)) for _ in range(VIEWS - 1)]
    return [images.to_square(picture, 224), *(images.crop(square, 224, 0, 0, False) for square in large)]


def resized(file: bytes, size: tuple[int, int]) -> bytes:
    """Return a picture as a JPEG of another size."""
    content = io.BytesIO()
    Image.open(io.BytesIO(file)).resize(size).save(content, "JPEG", quality=95)
    return content.getvalue()


def measure(data: str, features: str, size: tuple[int, int]) -> Measured:
    """Measure a core on the first pictures of a data set and its cache."""
    manifest = load_manifest(data)
    cached = load_feature_manifest(features, manifest)
    path = storage.join(data, manifest.splits["train"].files[0].name)
    files = [
        resized(file, size)
        for file in next(pq.ParquetFile(path).iter_batches(300, columns=["image"]))["image"].to_pylist()
    ]
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
        opened_per_s=per_second(lambda: len([open_views(file) for file in files])),
        fed_per_s=per_second(lambda: sum(len(b.pictures) for b in plan.train_batches(parts, 0, resident=True))),
        scored_per_s=scored_per_s(data),
        picture_bytes=sum(map(len, files)) / len(files),
        feature_bytes=2 * cached.shape[0] * cached.shape[1],
        caption_bytes=caption_bytes,
        process_bytes=process_bytes(cached.shape[1]),
    )


def scored_per_s(data: str) -> float:
    """Return how many dev pictures a second are scored; another picture's caption stands for what was found."""
    captions = json.loads(storage.read_bytes(storage.join(data, "captions_dev.json")))
    references = {name: [tokenize(caption) for caption in each] for name, each in captions.items()}
    found = dict(zip(references, [each[0] for each in reversed(references.values())], strict=True))
    return per_second(lambda: score_captions(found, references, frozenset()).num_pictures)


def process_bytes(num_features: int) -> float:
    """Return the most memory that this process has had in use, a step of the recipe's decoder included."""
    batch = random_batch(16, 80, seed=0)
    decoder = Decoder(flickr8k().model, num_features, VOCABULARY)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)
    logits = decoder(torch.randn(16, 49, num_features), batch.ids, batch.lengths, batch.picture_index).logits
    caption_loss(logits, pack_steps(batch.ids[:, 1:], batch.lengths))[0].backward()
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def cpu_name() -> str:
    """Return what the CPU calls itself."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def report(measured: Measured, assumed: Assumed, backbone: str, size: tuple[int, int]) -> str:
    """Return the model's tables, in Markdown."""
    training = training_gflop_per_caption(int(measured.feature_bytes / 98))
    lines = [
        "# How far it scales: a model",
        "",
        f"Made by `benchmarks/scale.py`, with features of {backbone}, three views a picture, the `flickr8k` recipe.",
        "Nothing here was run at these sizes. Each stage takes as long as what it lacks most; the rest overlaps, "
        "but for the sum of gradients, which comes after each step's backward pass. Every GPU has the recipe's "
        f"batch of {CAPTIONS_PER_GPU} captions to itself (`--training.batch-size {64 * CAPTIONS_PER_GPU}` on 64): "
        "with so few steps as the third column has for a small data set on many GPUs it would not train as well.",
        "",
        f"Measured on one core of this machine ({cpu_name()}): {measured.opened_per_s:.0f} pictures of {size[0]} x "
        f"{size[1]} a second from JPEG to three squares of 224, {measured.fed_per_s:,.0f} pictures/s from table "
        f"to batch, {measured.scored_per_s:.0f} dev pictures/s scored, for which all workers wait (decoding them is "
        "not counted). A picture has "
        f"{measured.picture_bytes / 1e3:.0f} kB as JPEG (enlarged from the data set's, quality 95) and "
        f"{measured.feature_bytes / 1e3:.0f} kB a view as features; a "
        f"caption {measured.caption_bytes:.0f} bytes of memory while a data set is prepared. "
        f"A process that trains has {measured.process_bytes / 1e9:.1f} GB. Counted: "
        f"{training:.2f} GFLOP a caption trained on, {ENCODER_GFLOP[backbone]} GFLOP a picture encoded.",
        "",
        f"Assumed: a GPU gives {assumed.encoder_tflops:g} TFLOP/s to the encoder (a third of a P100's fp32 peak of "
        f"9.3) and {assumed.decoder_tflops:g} to the decoder, whose operations are small (an H200 gave 3.7 in all); "
        f"{assumed.gpus_per_node} GPUs and {assumed.node_gb:g} GB of memory a node; {assumed.disk_gb_per_s:g} GB/s "
        f"read by a node, {assumed.network_gb_per_s:g} GB/s between nodes; the driver, through which a cache is "
        f"written, {assumed.driver_gb_per_s:g} GB/s.",
        "",
        "| Data set | GPUs | Steps | Cache, hours | held up by | Training, hours | held up by "
        "| Node's memory in training, GB | Cache, GB | Captions, GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data_set, (pictures, captions, epochs, _) in DATA_SETS.items():
        for num_gpus in (2, 8, 64):
            found = stages(data_set, num_gpus, backbone, measured, assumed)
            cells = [f"{data_set}, {epochs} epoch(s)", str(num_gpus), f"{num_steps(data_set, num_gpus):,.0f}"]
            for parts in found.values():
                cells += [f"{hours(parts):.2g}", max(parts, key=lambda name: parts[name])]
            cells += [
                f"{node_bytes(data_set, num_gpus, measured, assumed) / 1e9:.1f}",
                f"{VIEWS * pictures * measured.feature_bytes / 1e9:,.0f}",
                f"{captions * measured.caption_bytes / 1e9:.2g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"A node's memory: features that take less than {RESIDENT_SHARE} of its object store ({STORE_SHARE:.0%} of "
        "its memory) stay there, each node its share; others are read again in every epoch, and may fill the store, "
        f"and each worker holds 2,048 pictures to draw from, {2048 * measured.feature_bytes / 1e9:.2g} GB. The last "
        "columns are the features on disk, and the captions that the one process preparing a data set holds in memory.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the model's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared data set")
    parser.add_argument("--features", required=True, help="its feature cache")
    parser.add_argument("--picture-size", type=int, nargs=2, default=(500, 375), help="width and height of pictures")
    parser.add_argument("--decoder-tflops", type=float, default=1.0, help="what a GPU attains in training")
    parser.add_argument("--encoder-tflops", type=float, default=3.0, help="what a GPU attains in encoding")
    parser.add_argument("--node-gb", type=float, default=16.0, help="memory of a node")
    parser.add_argument("--gpus-per-node", type=int, default=2, help="GPUs of a node")
    parser.add_argument("--disk-gb-per-s", type=float, default=1.0, help="what a node reads")
    parser.add_argument("--network-gb-per-s", type=float, default=3.0, help="between nodes")
    parser.add_argument("--driver-gb-per-s", type=float, default=0.5, help="what one process writes of a cache")
    arguments = vars(parser.parse_args())
    torch.set_num_threads(1)
    data, features = (storage.absolute(arguments.pop(name)) for name in ("data", "features"))
    width, height = arguments.pop("picture_size")
    backbone = load_feature_manifest(features, load_manifest(data)).encoder.backbone
    if backbone not in ENCODER_GFLOP:
        parser.error(f"--features: of {backbone}; the model knows the work of {', '.join(ENCODER_GFLOP)} alone")
    measured = measure(data, features, (width, height))
    sys.stdout.write(report(measured, Assumed(**arguments), backbone, (width, height)))


if __name__ == "__main__":
    main()

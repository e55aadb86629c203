"""What reaches the training function's door, and how fast: `python benchmarks/feeds.py --data D --features F`.

Pictures streamed through Ray Data to a Ray Train worker against torch's DataLoader with two workers, which decodes,
resizes and batches the same files by the same functions; cached features through Ray Data against the same numbers in
a memory-mapped array, captions ready as ids. Nothing is done with the batches. Each way is a process of its own with
the priority of Ray's workers, measured in turn, over whole epochs after its first, their starts included. `--repeat 20`
feeds the shards twenty times over; with `--way` and a feed through Ray, `--peak` reports the peak of memory too, the
watching of which takes a tenth of a core from the feed.
"""

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray.train
import torch
from compare import figures_in_turn, rate_ratio, report, yield_to_others
from torch.utils.data import DataLoader, Dataset
from workers import run_in_workers

from caption_ray import storage
from caption_ray.cluster import connect
from caption_ray.data import images
from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.batches import CaptionBatch, PictureGroup, collate
from caption_ray.data.feature_manifest import FeatureManifest, load_feature_manifest
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.pipeline import Feed, Share, cached_feed, stream_feed
from caption_ray.data.shards import DatasetManifest, load_manifest, read_vocabulary
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary

WAYS = ("stream", "dataloader", "cached", "memmap")
SIDE, GROUPS, SHUFFLE_BUFFER = 224, 16, 512
MEASURED_S = 8.0
"""An epoch of cached features takes a tenth of a second, one of streamed pictures some seconds."""


def rate(epochs: Iterable[Iterable[CaptionBatch]]) -> float:
    """Go through an epoch, then through more for at least MEASURED_S, and return the pictures/s of those."""
    num_pictures, started = 0, time.perf_counter()
    for number, epoch in enumerate(epochs):
        for batch in epoch:
            num_pictures += len(batch.pictures)
        taken = time.perf_counter() - started
        if number == 0:
            num_pictures, started = 0, time.perf_counter()
        elif taken > MEASURED_S:
            break
    return num_pictures / taken


def through_ray(feed: Feed, vocabulary: str) -> float:
    """Feed a Ray Train worker that only counts."""

    def loop(config: dict[str, Any]) -> float:
        plan = BatchPlan(
            picture_format=PictureFormat(shape=tuple(config["shape"]), dtype=config["dtype"]),
            crop_to=None,
            vocabulary=Vocabulary.from_json(config["vocabulary"], "vocabulary.json"),
            captions_per_picture=5,
            groups_per_batch=GROUPS,
            shuffle_buffer=SHUFFLE_BUFFER,
            seed=0,
            rank=0,
        )
        share = Share(ray.train.get_dataset_shard("train"), plan.read, resident=config["resident"])
        return rate(plan.train_batches(share, epoch, resident=share.resident) for epoch in itertools.count())

    config = {
        "shape": feed.picture_format.shape,
        "dtype": feed.picture_format.dtype,
        "resident": feed.resident,
        "vocabulary": vocabulary,
    }
    return run_in_workers(loop, config, feed.dataset)


def encode(captions: list[str], vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """Return captions as ids."""
    return tuple(tuple(vocabulary.encode(tokenize(caption))) for caption in captions)


class Pictures(Dataset[PictureGroup]):
    """The pictures of some shards, decoded when asked for."""

    def __init__(self, paths: list[str], vocabulary: Vocabulary) -> None:
        self.table = pq.read_table(paths, columns=["captions", "image"], memory_map=True)
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> PictureGroup:
        return PictureGroup(
            picture=images.decode_square(self.table["image"][index].as_py(), SIDE),
            captions=encode(self.table["captions"][index].as_py(), self.vocabulary),
        )


def dataloader(paths: list[str], vocabulary: Vocabulary) -> float:
    """Measure torch's DataLoader on the same shards."""
    loader = DataLoader(
        Pictures(paths, vocabulary),
        batch_size=GROUPS,
        shuffle=True,
        num_workers=2,
        collate_fn=collate,
        persistent_workers=True,
    )
    return rate(loader for _ in itertools.count())


def memmap(features: str, manifest: FeatureManifest, vocabulary: Vocabulary) -> float:
    """Measure batches gathered from a memory-mapped array, in random order."""
    files = manifest.splits["train"]
    num_rows = sum(file.num_rows for file in files)
    captions: list[tuple[tuple[int, ...], ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        written = np.lib.format.open_memmap(path, mode="w+", dtype="<f2", shape=(num_rows, *manifest.shape))
        for file in files:
            for part in pq.ParquetFile(storage.join(features, file.name)).iter_batches(
                64, columns=["captions", "picture"]
            ):
                for row, picture in enumerate(manifest.picture_format.read(part["picture"])):
                    written[len(captions) + row] = picture
                captions += [encode(sentences, vocabulary) for sentences in part["captions"].to_pylist()]
        written.flush()
        array = np.load(path, mmap_mode="r")

        def epoch(seed: int) -> Iterator[CaptionBatch]:
            order = np.random.default_rng(seed).permutation(num_rows)
            for start in range(0, num_rows, GROUPS):
                rows = order[start : start + GROUPS]
                yield collate([PictureGroup(picture=array[row], captions=captions[row]) for row in rows])

        return rate(epoch(seed) for seed in itertools.count())


def proportional_set_size(process: psutil.Process) -> int:
    """Return a process's memory, bytes, and its part of what it shares; 0 if it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def peak_of(measure: Callable[[], float]) -> tuple[float, int]:
    """Return what `measure` returns, and the most memory meanwhile of all processes below this one, bytes.

    Proportional set sizes: memory that processes share, as they do the object store, counts once.
    """
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, sum(map(proportional_set_size, psutil.Process().children(recursive=True))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return measure(), peak
    finally:
        done.set()
        watcher.join()


def repeated(manifest: DatasetManifest | FeatureManifest, times: int) -> Any:
    """Return a manifest that names the train shards several times over."""
    train = manifest.splits["train"]
    if isinstance(manifest, FeatureManifest):
        return manifest.model_copy(update={"splits": {**manifest.splits, "train": train * times}})  # type: ignore[operator]
    update = {"files": train.files * times, "num_pictures": train.num_pictures * times}  # type: ignore[union-attr]
    return manifest.model_copy(update={"splits": {**manifest.splits, "train": train.model_copy(update=update)}})


def measure(way: str, data: str, features: str, repeat: int, watch_peak: bool) -> dict[str, float]:
    """Return pictures/s of a way, and where it is asked for the peak of memory of one through Ray."""
    manifest = load_manifest(data)
    cached = load_feature_manifest(features, manifest)
    text = read_vocabulary(data, manifest)
    vocabulary = Vocabulary.from_json(text, "vocabulary.json")
    if way in ("dataloader", "memmap"):
        yield_to_others()
    if way == "dataloader":
        paths = [storage.join(data, file.name) for file in manifest.splits["train"].files]
        return {"pictures_per_s": dataloader(paths, vocabulary)}
    if way == "memmap":
        return {"pictures_per_s": memmap(features, cached, vocabulary)}
    with connect(num_cpus=3):  # one for the worker, two for the tasks that decode, as the DataLoader has them
        feed = (
            stream_feed(data, repeated(manifest, repeat), "train", SIDE, augment=False)
            if way == "stream"
            else cached_feed(features, repeated(cached, repeat), "train", augment=False)
        )
        if not watch_peak:
            return {"pictures_per_s": through_ray(feed, text)}
        pictures_per_s, peak = peak_of(lambda: through_ray(feed, text))
    return {"pictures_per_s": pictures_per_s, "peak_bytes": peak}


def main() -> None:
    """Measure all four ways and print their ratios; with --way, one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="times that all are measured in turn")
    parser.add_argument("--repeat", type=int, default=1, help="times that the shards are fed over in an epoch")
    parser.add_argument("--way", choices=WAYS, help="measure this way alone")
    parser.add_argument("--only", choices=("pictures", "features"), help="compare the two ways of these alone")
    parser.add_argument("--peak", action="store_true", help="with --way: watch the memory of a feed through Ray")
    arguments = parser.parse_args()
    if arguments.way:
        torch.set_num_threads(1)
        data, features = storage.absolute(arguments.data), storage.absolute(arguments.features)
        report(measure(arguments.way, data, features, arguments.repeat, arguments.peak))
        return
    pairs = {"pictures": ("stream", "dataloader"), "features": ("cached", "memmap")}
    chosen = [pair for what, pair in pairs.items() if arguments.only in (None, what)]
    rates = figures_in_turn([way for pair in chosen for way in pair], arguments.rounds, "pictures_per_s")
    report(
        {
            "pictures_per_s": rates,
            **{f"{ours}_to_{theirs}": rate_ratio(rates, theirs, ours) for ours, theirs in chosen},
        }
    )


if __name__ == "__main__":
    main()

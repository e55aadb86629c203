"""Training steps under Ray Train against plain PyTorch: `python benchmarks/ray_overhead.py --data D --features F`.

Three ways to train the `flickr8k` decoder on the same cached features, in the same batches of the same size: plain, a
loop in one process with the features in memory; one Ray Train worker with as many threads; two of half the
threads each. Each way is a process of its own, with the memory settings and the priority of a training worker,
measured in turn, without the first steps.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import ray.train.torch
import torch
from compare import figures_in_turn, keep_memory, rate_ratio, report, yield_to_others
from workers import run_in_workers

from caption_ray import storage
from caption_ray.cluster import connect
from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.feature_manifest import FeatureManifest, load_feature_manifest
from caption_ray.data.pipeline import cached_feed, shard_tables
from caption_ray.data.shards import load_manifest, read_vocabulary
from caption_ray.device import pick_device, resolve_precision
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.presets import flickr8k
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.setup import DDP_OPTIONS
from caption_ray.train.steps import build_stepper, groups_per_worker, idle_batch

WAYS = ("plain", "one_worker", "two_workers")
WARM_UP = 40
"""Steps that are not counted. On a GPU most graphs are recorded in them."""


def captions_per_s(
    settings: dict[str, Any], tables: Iterable[pa.Table], threads: int, rank: int, workers: int
) -> float:
    """Train for some steps and return the captions/s, over all workers, of those after the first."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    experiment = flickr8k()
    manifest = FeatureManifest.model_validate(settings["manifest"])
    vocabulary = Vocabulary.from_json(settings["vocabulary"], "vocabulary.json")
    device = pick_device()
    precision = resolve_precision("auto", device)
    torch.manual_seed(0)
    model = CaptionModel(None, Decoder(experiment.model, manifest.shape[1], len(vocabulary))).to(device)
    wrap = functools.partial(ray.train.torch.prepare_model, parallel_strategy_kwargs=DDP_OPTIONS)
    idle = idle_batch(manifest.shape, torch.float16)
    stepper = build_stepper(model, experiment, precision, device, idle, wrap if workers > 1 else lambda model: model)
    plan = BatchPlan(
        picture_format=manifest.picture_format,
        crop_to=None,
        vocabulary=vocabulary,
        captions_per_picture=experiment.training.captions_per_picture,
        groups_per_batch=groups_per_worker(experiment.training, workers),
        shuffle_buffer=256,
        seed=0,
        rank=rank,
        in_step=workers > 1 and device.type == "cpu",
    )
    parts = list(plan.read(tables))
    for part in parts:  # as in any epoch but the first, all pages are there before the clock starts
        part.views[0].max()
    epochs = (plan.train_batches(parts, epoch, resident=True) for epoch in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), WARM_UP + settings["steps"])
    num_captions, started = 0, time.perf_counter()
    for step, (batch, counts) in enumerate(stepper.counted(batches)):
        if step == WARM_UP:
            stepper.watch.settle()
            num_captions, started = 0, time.perf_counter()
        stepper.step(batch, counts)
        num_captions += counts.num_captions
    stepper.watch.settle()
    return num_captions / (time.perf_counter() - started)


def plain(settings: dict[str, Any], features: str, threads: int) -> float:
    """Measure a loop that reads the shards by itself."""
    yield_to_others()
    manifest = FeatureManifest.model_validate(settings["manifest"])
    tables = [  # in memory before the clock starts, as Ray's feed has them
        pa.Table.from_batches([part])
        for file in manifest.splits["train"]
        for part in pq.ParquetFile(storage.join(features, file.name)).iter_batches(
            64, columns=["name", "captions", "picture"]
        )
    ]
    return captions_per_s(settings, tables, threads, rank=0, workers=1)


def under_ray(settings: dict[str, Any], features: str, threads: int, workers: int) -> float:
    """Measure the same in workers of Ray Train."""
    manifest = FeatureManifest.model_validate(settings["manifest"])

    def loop(config: dict[str, Any]) -> float:
        context = ray.train.get_context()
        tables = shard_tables(ray.train.get_dataset_shard("train"))
        return captions_per_s(config, tables, threads // workers, context.get_world_rank(), workers)

    with connect():
        feed = cached_feed(features, manifest, "train", augment=False)
        return run_in_workers(loop, settings, feed.dataset, workers)


def main() -> None:
    """Measure all three ways and print their ratios; with --way, one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7, help="times that all are measured in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, over all workers")
    parser.add_argument("--way", choices=WAYS, help="measure this way alone, and print captions/s")
    arguments = parser.parse_args()
    keep_memory()
    ways = WAYS[:-1] if torch.cuda.device_count() == 1 else WAYS  # NCCL wants a GPU for each worker
    if arguments.way not in (None, *ways):
        parser.error(f"--way {arguments.way}: wants a second GPU")
    if arguments.way:
        data, features = storage.absolute(arguments.data), storage.absolute(arguments.features)
        manifest = load_manifest(data)
        settings = {
            "manifest": load_feature_manifest(features, manifest).model_dump(mode="json"),
            "vocabulary": read_vocabulary(data, manifest),
            "steps": arguments.steps,
        }
        if arguments.way == "plain":
            result = plain(settings, features, arguments.threads)
        else:
            result = under_ray(settings, features, arguments.threads, workers=WAYS.index(arguments.way))
        report({"captions_per_s": result})
        return
    rates = figures_in_turn(ways, arguments.rounds, "captions_per_s")
    result: dict[str, object] = {
        "captions_per_s": rates,
        "one_worker_to_plain": rate_ratio(rates, "plain", "one_worker"),
    }
    if "two_workers" in ways:
        result["two_workers_to_one"] = rate_ratio(rates, "one_worker", "two_workers")
    report(result)


if __name__ == "__main__":
    main()

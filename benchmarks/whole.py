"""An epoch of the original's work, the tutorials' way and ours: `python benchmarks/whole.py --data D`.

The work is that of the `palmetto` preset: ResNet50, decoder of 256/256, 16 captions a step, a picture per caption. The
tutorials' way decodes and encodes the picture anew for every caption, and steps through the textbook's decoder
(`textbook.py`), all in fp32, with torch's AdamW as it comes. Ours encodes each picture once, in fp32 as
`jobs/cache_features.py` does by itself, and trains on its features, read back in half precision; an epoch of it counts
for a hundredth of the encoding, since there are a hundred. Both decode pictures with as many threads as there are
cores. Both are measured on the first pictures of the data set, without Ray; the tutorials' way on some of their
captions, and extrapolated to all. Weights are random, which costs as much.
"""

import argparse
import dataclasses
import os
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import torch
from compare import keep_memory, now, report
from encoder_pass import EncoderPass, eager
from textbook import textbook_logits
from torch import Tensor

from caption_ray import storage
from caption_ray.data import images
from caption_ray.data.batches import CaptionBatch, PictureGroup, collate, stack_pictures
from caption_ray.data.shards import load_manifest, read_vocabulary
from caption_ray.device import autocast, pick_device, resolve_precision
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.encoder import build_encoder
from caption_ray.model.frozen_encoder import FrozenEncoder
from caption_ray.model.loss import caption_loss
from caption_ray.presets import palmetto
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.gradients import clip_gradients
from caption_ray.train.graphed import GraphedLoss, may_record

EXPERIMENT = palmetto()
BATCH = EXPERIMENT.training.batch_size
Sample = tuple[bytes, tuple[int, ...]]

decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)))


class Trainer:
    """The original's decoder and its optimiser, with one way to compute logits."""

    def __init__(self, vocabulary_size: int, device: torch.device, textbook: bool) -> None:
        torch.manual_seed(0)
        self.device, self.textbook = device, textbook
        self.precision = "fp32" if textbook else resolve_precision("auto", device)
        self.decoder = Decoder(EXPERIMENT.model, 2048, vocabulary_size).to(device)
        rate = EXPERIMENT.optimizer.learning_rate
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=rate, fused=not textbook)
        model = CaptionModel(None, self.decoder)
        self.graphed: GraphedLoss | None = None
        if may_record(model, device) and not textbook:
            self.graphed = GraphedLoss(model, EXPERIMENT.training, self.precision, device, BATCH)

    def step(self, batch: CaptionBatch) -> None:
        """Do one optimiser step."""
        if self.graphed:
            self.graphed(batch, 1 / batch.num_words, 0.0)
        else:
            self._compute_gradients(batch.to(self.device))
        clip = torch.nn.utils.clip_grad_norm_ if self.textbook else clip_gradients
        clip(list(self.decoder.parameters()), EXPERIMENT.optimizer.max_grad_norm)
        self.optimizer.step()
        if not self.graphed:
            self.optimizer.zero_grad()

    def _compute_gradients(self, batch: CaptionBatch) -> None:
        pictures = batch.pictures.float() if self.textbook else batch.pictures
        arguments = (pictures, batch.ids, batch.lengths, batch.picture_index)
        with autocast(self.precision, self.device):
            logits = textbook_logits(self.decoder, *arguments) if self.textbook else self.decoder(*arguments).logits
        loss_sum, num_words = caption_loss(logits, pack_steps(batch.ids[:, 1:], batch.lengths))
        (loss_sum / num_words).backward()


def tutorial_epoch(samples: list[Sample], encode: EncoderPass, trainer: Trainer) -> None:
    """Train on captions, each with its picture decoded and encoded for it."""
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        with torch.no_grad():
            features = encode(decode([image for image, _ in part]))
        batch = to_batch((np.empty(0, np.float32), ids) for _, ids in part)
        trainer.step(dataclasses.replace(batch, pictures=features))


def decode(pictures: Sequence[bytes]) -> Tensor:
    """Return the pictures as the encoder takes them."""
    return stack_pictures(list(decoders.map(partial(images.decode_square, side=224), pictures)))


def cache(pictures: Iterable[bytes], encode: EncoderPass) -> dict[bytes, np.ndarray]:
    """Return the features of every picture, in half precision."""
    files = list(pictures)
    features: dict[bytes, np.ndarray] = {}
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        with torch.inference_mode():
            grids = encode(decode(part))
        features |= zip(part, grids.cpu().numpy().astype("<f2"), strict=True)
    return features


def cached_epoch(samples: list[Sample], features: dict[bytes, np.ndarray], trainer: Trainer) -> None:
    """Train on captions, with features at hand."""
    for start in range(0, len(samples), BATCH):
        trainer.step(to_batch((features[image], ids) for image, ids in samples[start : start + BATCH]))


def to_batch(parts: Iterable[tuple[np.ndarray, tuple[int, ...]]]) -> CaptionBatch:
    """Return a batch of a picture for every caption."""
    return collate([PictureGroup(picture=grid, captions=(ids,)) for grid, ids in parts])


def read_samples(data: str, num_pictures: int) -> tuple[list[Sample], int]:
    """Return the captions of the first training pictures, each with its picture, shuffled; and the number of words."""
    manifest = load_manifest(data)
    vocabulary = Vocabulary.from_json(read_vocabulary(data, manifest), "vocabulary.json")
    path = storage.join(data, manifest.splits["train"].files[0].name)
    table = next(pq.ParquetFile(path).iter_batches(num_pictures, columns=["image", "captions"]))
    samples = [
        (row["image"], tuple(vocabulary.encode(tokenize(caption))))
        for row in table.to_pylist()
        for caption in row["captions"]
    ]
    np.random.default_rng(0).shuffle(samples)  # type: ignore[arg-type]
    return samples, len(vocabulary)


def main() -> None:
    """Measure both ways in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared data set")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--tutorial-captions", type=int, default=160, help="captions that the slow way is measured on")
    parser.add_argument("--rounds", type=int, default=3, help="times that both are measured in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    device = pick_device()
    samples, vocabulary_size = read_samples(storage.absolute(arguments.data), arguments.pictures)
    encoder = build_encoder(EXPERIMENT.encoder, load_weights=False)
    fast = FrozenEncoder(encoder).on(device, "fp32")
    slow = eager(encoder, device)
    trainers = {way: Trainer(vocabulary_size, device, way == "tutorial") for way in ("tutorial", "ours")}
    few = samples[: arguments.tutorial_captions]
    tutorial_epoch(samples[:BATCH], slow, trainers["tutorial"])
    warm_up = samples if device.type == "cuda" else samples[:BATCH]  # every graph is recorded
    cached_epoch(warm_up, cache({image for image, _ in warm_up}, fast), trainers["ours"])
    tutorial, caching, training = [], [], []
    for _ in range(arguments.rounds):
        marks = [now()]
        tutorial_epoch(few, slow, trainers["tutorial"])
        marks.append(now())
        features = cache(dict.fromkeys(image for image, _ in samples), fast)
        marks.append(now())
        cached_epoch(samples, features, trainers["ours"])
        marks.append(now())
        seconds = np.diff(marks).tolist()
        tutorial.append(seconds[0] * len(samples) / len(few))
        caching.append(seconds[1])
        training.append(seconds[2])
    epochs = EXPERIMENT.training.epochs
    ratios = [
        slow_s / (train_s + cache_s / epochs)
        for slow_s, cache_s, train_s in zip(tutorial, caching, training, strict=True)
    ]
    report(
        {
            "pictures": len({image for image, _ in samples}),
            "captions": len(samples),
            "tutorial_epoch_s": statistics.median(tutorial),
            "tutorial_captions_per_s": len(samples) / statistics.median(tutorial),
            "cache_s": statistics.median(caching),
            "our_epoch_s": statistics.median(training),
            "our_captions_per_s": len(samples) / statistics.median(training),
            "epochs": epochs,
            "times_faster": statistics.median(ratios),
        }
    )


if __name__ == "__main__":
    main()

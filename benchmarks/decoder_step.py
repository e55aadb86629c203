"""The decoder's training step against the textbook's: `python benchmarks/decoder_step.py --captions 160 --pictures 32`.

Both do forward, backward and optimiser on the same random features and the same captions, with the original's sizes.
The textbook's optimiser is torch's AdamW as it comes, ours the same fused.
"""

import argparse
import dataclasses
import statistics

import numpy as np
import torch
from compare import keep_memory, ratio, report, seconds_in_turn
from floor import measure_machine, work_of_step
from textbook import textbook_logits
from torch import Tensor

from caption_ray.config import ModelConfig, Precision, TrainingConfig
from caption_ray.data.batches import CaptionBatch, PictureGroup, by_longest_caption, collate
from caption_ray.device import autocast, resolve_precision
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.loss import caption_loss
from caption_ray.train.graphed import GraphedLoss, may_record

CONFIG = ModelConfig(dropout=0.5)
REGIONS, FEATURES, VOCABULARY = 49, 2048, 2540
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Words per caption in Flickr8k's training split, per mille.
LENGTHS = {3: 4, 4: 12, 5: 29, 6: 65, 7: 85, 8: 97, 9: 111, 10: 111, 11: 104, 12: 93, 13: 77, 14: 62, 15: 44, 16: 33,
           17: 22, 18: 17, 19: 12, 20: 7, 21: 5, 22: 4, 23: 3, 24: 2, 25: 1}  # fmt: skip


def random_batch(num_pictures: int, num_captions: int, seed: int) -> CaptionBatch:
    """Return random features with as many captions a picture as another, of Flickr8k's lengths."""
    generator = np.random.default_rng(seed)
    weights = np.array(list(LENGTHS.values()), dtype=float)
    lengths = generator.choice(list(LENGTHS), size=num_captions, p=weights / weights.sum())
    captions = [tuple(generator.integers(4, VOCABULARY, size=length).tolist()) for length in lengths]
    each = num_captions // num_pictures
    groups = (
        PictureGroup(
            picture=generator.standard_normal((REGIONS, FEATURES), dtype=np.float32),
            captions=tuple(captions[row * each : (row + 1) * each]),
        )
        for row in range(num_pictures)
    )
    return collate(by_longest_caption(groups))


class Step:
    """A decoder, its optimiser, and one way to compute logits."""

    def __init__(self, batch: CaptionBatch, device: torch.device, textbook: bool, precision: Precision) -> None:
        torch.manual_seed(0)
        self.precision = precision
        self.decoder = Decoder(CONFIG, FEATURES, VOCABULARY).to(device)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=1e-4, fused=not textbook)
        self.batch = batch.to(device)
        self.targets = pack_steps(self.batch.ids[:, 1:], self.batch.lengths)
        self.textbook = textbook
        self.graphed: GraphedLoss | None = None
        model, num_pictures = CaptionModel(None, self.decoder), len(batch.pictures)
        if may_record(model, device) and not textbook:
            each = len(batch.lengths) // num_pictures
            training = TrainingConfig(batch_size=len(batch.lengths), captions_per_picture=each)
            self.batch = dataclasses.replace(batch, pictures=self.batch.pictures)  # what is laid out anew is there
            self.graphed = GraphedLoss(model, training, precision, device, num_pictures)

    def logits(self) -> Tensor:
        """Return logits (W, V) of the batch."""
        arguments = (self.batch.pictures, self.batch.ids, self.batch.lengths, self.batch.picture_index)
        with autocast(self.precision, self.batch.ids.device):
            return textbook_logits(self.decoder, *arguments) if self.textbook else self.decoder(*arguments).logits

    def __call__(self) -> float:
        """Do one optimiser step; return the loss sum."""
        if self.graphed:
            loss_sum = self.graphed(self.batch, 1 / self.batch.num_words, 0.0)
            self.optimizer.step()
            return float(loss_sum)
        loss_sum, count = caption_loss(self.logits(), self.targets)
        (loss_sum / count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss_sum.detach())


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=160, help="captions a step")
    parser.add_argument("--pictures", type=int, default=32, help="pictures that they are of")
    parser.add_argument("--rounds", type=int, default=7, help="times that both are measured in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of ours")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.captions % arguments.pictures:
        parser.error(f"--captions {arguments.captions}: must be a multiple of --pictures {arguments.pictures}")
    keep_memory()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = random_batch(arguments.pictures, arguments.captions, arguments.seed)
    precision = resolve_precision(arguments.precision, device)
    ways = {
        "textbook": Step(batch, device, textbook=True, precision="fp32"),
        "ours_fp32": Step(batch, device, textbook=False, precision="fp32"),
        "ours": Step(batch, device, textbook=False, precision=precision),
    }
    taken = seconds_in_turn(ways, arguments.rounds)
    work = work_of_step(
        CONFIG, FEATURES, VOCABULARY, pictures=arguments.pictures, regions=REGIONS, words=batch.num_words
    )
    machine = measure_machine(DTYPES[precision], device)
    floor = work.seconds(machine)
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    report(
        {
            "captions": arguments.captions,
            "pictures": arguments.pictures,
            "words": batch.num_words,
            "seconds": seconds,
            "gflops_of_step": work.flops / 1e9,
            "megabytes_of_step": work.num_bytes / 1e6,
            "matrix_rate_gflops_per_s": machine.matrix_rate / 1e9,
            "bandwidth_gb_per_s": machine.bandwidth / 1e9,
            "floor_seconds": floor,
            "share_of_floor_rate": floor / seconds["ours"],
            "precision": precision,
            "times_faster": ratio(taken, "textbook", "ours"),
            "times_faster_fp32": ratio(taken, "textbook", "ours_fp32"),
        }
    )


if __name__ == "__main__":
    main()

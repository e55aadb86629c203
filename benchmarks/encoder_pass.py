"""The encoder pass of `jobs/cache_features.py` against eager single precision: `python benchmarks/encoder_pass.py`.

The slow way is torchvision's network as it comes: channels first, batch norm apart, fp32. The fast one is the pass of
the cache's actors: channels last, batch norm folded, activations and sums within the convolutions; by itself in bf16 if
the CPU computes in it, as the cache does with `--precision bf16`. With `--bundle` and `--data`, dev captions are
decoded from the features of both, to see that they are as good.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from typing import get_args

import pyarrow.parquet as pq
import torch
from compare import ratio, report, seconds_in_turn
from torch import Tensor

from caption_ray import storage
from caption_ray.bundle import Bundle, load_bundle
from caption_ray.config import EncoderConfig, EncoderPrecision
from caption_ray.data import images
from caption_ray.data.batches import stack_pictures
from caption_ray.data.shards import load_manifest
from caption_ray.device import pick_device, resolve_precision
from caption_ray.evaluation.metrics import score_captions
from caption_ray.model.decoding import beam_search
from caption_ray.model.encoder import Encoder, build_encoder
from caption_ray.model.frozen_encoder import FrozenEncoder
from caption_ray.text.tokenizer import tokenize

EncoderPass = Callable[[Tensor], Tensor]


def eager(encoder: Encoder, device: torch.device) -> EncoderPass:
    """Return the pass of the network as torchvision makes it."""
    stages = copy.deepcopy(encoder.stages).to(device, memory_format=torch.contiguous_format)
    mean, std = encoder.mean.to(device), encoder.std.to(device)

    def run(pictures: Tensor) -> Tensor:
        grid: Tensor = stages((pictures.to(device).float() - mean) / std)
        return grid.flatten(2).transpose(1, 2)

    return run


def dev_batches(data: str, side: int, size: int) -> Iterator[tuple[list[str], list[list[str]], Tensor]]:
    """Yield names, captions and pictures of a prepared data set's dev split."""
    for file in load_manifest(data).splits["dev"].files:
        for table in pq.ParquetFile(storage.join(data, file.name)).iter_batches(
            size, columns=["name", "captions", "image"]
        ):
            squares = [images.decode_square(image.as_py(), side) for image in table["image"]]
            yield table["name"].to_pylist(), table["captions"].to_pylist(), stack_pictures(squares)


def score(bundle: Bundle, data: str, encode: EncoderPass, device: torch.device) -> dict[str, float]:
    """Return scores of dev captions that were decoded from features in half precision, as a cache keeps them."""
    decoder = bundle.model.decoder.to(device).eval()
    predicted, references = {}, {}
    for names, captions, pictures in dev_batches(data, bundle.config.encoder.image_size, 32):
        found = beam_search(decoder, encode(pictures).half().float(), bundle.config.decode)
        predicted |= {name: bundle.vocabulary.decode(best[0].ids) for name, best in zip(names, found, strict=True)}
        references |= {name: [tokenize(text) for text in texts] for name, texts in zip(names, captions, strict=True)}
    scores = score_captions(predicted, references, frozenset(bundle.vocabulary.words))
    return {"bleu_4": scores.bleu_4, "cider": scores.cider}


@torch.inference_mode()
def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="pictures encoded at a time")
    parser.add_argument("--rounds", type=int, default=7, help="times that both are measured in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--precision", choices=("auto", *get_args(EncoderPrecision)), default="auto", help="of the fast one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", help="a trained bundle, whose encoder then is the one that is measured")
    parser.add_argument("--data", help="the data set of which dev is decoded")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = pick_device()
    bundle = load_bundle(arguments.bundle) if arguments.bundle else None
    encoder = (
        bundle.model.encoder if bundle else build_encoder(EncoderConfig(backbone=arguments.backbone, weights="none"))
    )
    assert encoder is not None
    precision = arguments.precision
    if precision != "mixed":  # which is fp32 where it can be nothing else
        precision = resolve_precision(precision, device, "--precision")
    passes = {"eager": eager(encoder, device), "ours": FrozenEncoder(encoder).on(device, precision)}
    side = encoder.image_size
    pictures = torch.randint(0, 256, (arguments.batch, 3, side, side), dtype=torch.uint8)
    exact, found = (run(pictures) for run in passes.values())
    taken = seconds_in_turn({name: lambda run=run: run(pictures) for name, run in passes.items()}, arguments.rounds)
    result: dict[str, object] = {
        "backbone": bundle.config.encoder.backbone if bundle else arguments.backbone,
        "precision": precision,
        "pictures_per_s": {name: arguments.batch / statistics.median(times) for name, times in taken.items()},
        "times_faster": ratio(taken, "eager", "ours"),
        "relative_error": float((found - exact).norm() / exact.norm()),
    }
    if bundle and arguments.data:
        result["dev"] = {name: score(bundle, arguments.data, run, device) for name, run in passes.items()}
    report(result)


if __name__ == "__main__":
    main()

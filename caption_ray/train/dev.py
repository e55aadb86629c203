"""Decoding the dev split while training: every picture once, by free-running search, whatever the workers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from caption_ray.caption import Caption
from caption_ray.config import DecodeOptions, Precision
from caption_ray.data.batches import CaptionBatch, PictureRow
from caption_ray.device import autocast
from caption_ray.errors import RunError
from caption_ray.evaluation.metrics import CaptionScores, score_captions
from caption_ray.inference import to_captions
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoding import beam_search
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.agreement import gathered
from caption_ray.train.steps import dev_loss


@dataclass(kw_only=True)
class DevShare:
    """What one worker found on its share of dev."""

    predicted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    references: dict[str, list[list[str]]] = field(default_factory=dict)
    shown: dict[str, Caption] = field(default_factory=dict)
    loss_sum: float = 0.0
    num_words: int = 0
    num_rows: int = 0

    def add(self, other: "DevShare") -> None:
        """Take in another share."""
        self.predicted |= other.predicted
        self.references |= other.references
        self.shown |= other.shown
        self.loss_sum += other.loss_sum
        self.num_words += other.num_words
        self.num_rows += other.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class DevResult:
    """The whole dev split: scores of the decoded captions, loss with true words fed in, nats per word."""

    scores: CaptionScores
    loss: float
    shown: dict[str, Caption]
    """Captions with attention of the pictures that were asked for, by name."""


@torch.no_grad()
def decode_share(
    model: CaptionModel,
    batches: Iterable[tuple[list[PictureRow], CaptionBatch]],
    *,
    vocabulary: Vocabulary,
    options: DecodeOptions,
    show: frozenset[str],
    precision: Precision,
    device: torch.device,
) -> DevShare:
    """Caption a worker's dev pictures; keep the whole caption of those in `show`.

    Where a picture's captions have no finite probability the weights are lost, and so is the loss.
    """
    share = DevShare()
    model.eval()
    for rows, batch in batches:
        with autocast(precision, device):
            features = model.features(batch.pictures.to(device))
            found = beam_search(model.decoder, features, options)
        for row, hypotheses in zip(rows, found, strict=True):
            caption = next(iter(to_captions(hypotheses[:1], vocabulary)), None)
            share.predicted[row.name] = caption.words if caption else ()
            share.references[row.name] = [tokenize(sentence) for sentence in row.captions]
            if caption is None:
                share.loss_sum = math.nan
            elif row.name in show:
                share.shown[row.name] = caption
        loss_sum, num_words = dev_loss(model.decoder, features, batch, precision, device)
        share.loss_sum += loss_sum
        share.num_words += num_words
        share.num_rows += len(rows)
    return share


def gather_result(share: DevShare, vocabulary: Vocabulary, num_pictures: int) -> DevResult:
    """Return the result over all workers, alike on each. Every worker must call it.

    Raises RunError unless each of the `num_pictures` dev pictures was decoded exactly once.
    """
    whole = DevShare()
    for part in gathered(share):
        whole.add(part)
    if not whole.num_rows == len(whole.predicted) == num_pictures:
        raise RunError(
            f"dev: {whole.num_rows} pictures decoded, {len(whole.predicted)} different ones, of {num_pictures}; "
            "the data set has changed while training"
        )
    # Every worker scores, rather than wait for one to: it takes as long, and needs no second exchange.
    scores = score_captions(whole.predicted, whole.references, frozenset(vocabulary.words))
    return DevResult(scores=scores, loss=whole.loss_sum / whole.num_words, shown=whole.shown)

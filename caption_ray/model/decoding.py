"""Searches for captions: greedy and beam, both over `Decoder.step` alone.

Shape letters: P pictures, K beams, B = P * K rows (picture-major), T words so far, R regions, V vocabulary.
"""

import functools
import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caption_ray.config import DecodeOptions
from caption_ray.model.decoder_state import DecoderState, PictureContext
from caption_ray.model.fused_ranking import rank, ranking_kernel
from caption_ray.special_ids import END_ID, PAD_ID, START_ID, UNKNOWN_ID

_NEVER_WRITTEN = (PAD_ID, START_ID, UNKNOWN_ID)


class StepDecoder(Protocol):
    """What a search needs of a decoder (`model.decoder.Decoder` has it)."""

    def start(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        """Return what all steps share, and the first state."""

    def step(self, ids: Tensor, state: DecoderState, context: PictureContext) -> tuple[Tensor, DecoderState, Tensor]:
        """Return logits (B, V), the new state and attention (B, R)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One caption that a search found.

    ids: its words, without markers.  log_probability: of the words and <end>, natural logarithm (of the words alone
    where `max_words` cut it).  score: what it was ranked by.  attention: (T, R), a row per word, each summing to 1.
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float
    attention: Tensor


def _log_probabilities(logits: Tensor, first: bool) -> Tensor:
    """Return log p (B, V), with words that are never written at minus infinity (not renormalised)."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return log_p.index_fill_(1, _never_on(logits.device, first), -torch.inf)


def _never(first: bool) -> tuple[int, ...]:
    """Return the words that are not written. A caption has at least one, so `<end>` is not the first."""
    return (*_NEVER_WRITTEN, END_ID) if first else _NEVER_WRITTEN


@functools.cache
def _never_on(device: torch.device, first: bool) -> Tensor:
    """Return the same on a device."""
    return torch.tensor(_never(first), device=device)


def best_continuations(logits: Tensor, scores: Tensor, count: int, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best `count` of each picture's: log p of all their words, their rows and words, (P, count) each.

    logits: (B, V).  scores: (P, K), log p of the words so far.
    """
    if kernel := ranking_kernel(logits):
        return rank(kernel, logits, scores, _never(first), count)
    log_p = _log_probabilities(logits, first)
    totals = log_p.add_(scores.view(-1, 1)).view(len(scores), -1)
    total, flat = totals.topk(count, dim=-1)
    first_rows = torch.arange(len(scores), device=logits.device).unsqueeze(1) * scores.shape[1]
    return total, first_rows + flat // logits.shape[1], flat % logits.shape[1]


def best_unended(
    total: Tensor, origin: Tensor, chosen: Tensor, ends: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of `best_continuations`, best first, the `count` best that do not end, where there are so many."""
    going_on = ends.int().sort(dim=-1, stable=True).indices[:, :count]
    scores, origin, chosen = (values.gather(1, going_on) for values in (total, origin, chosen))
    return scores, origin, chosen


def rank_score(log_probability: float, num_tokens: int, length_penalty: float) -> float:
    """Return log-probability / length^penalty, the length counting `<end>`."""
    return log_probability / math.pow(num_tokens, length_penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyWord:
    """One step of greedy search for P pictures: ids (P,), their log p (P,), attention (P, R)."""

    ids: Tensor
    log_probability: Tensor
    attention: Tensor


@torch.no_grad()
def greedy_steps(decoder: StepDecoder, features: Tensor, max_words: int) -> Iterator[GreedyWord]:
    """Yield the most probable next words, step by step, until every picture has had <end> or `max_words`.

    After a picture's <end> its ids are <pad> and its log p 0. features: (P, R, F).
    """
    context, state = decoder.start(features)
    ids = torch.full((features.shape[0],), START_ID, device=features.device)
    ended = torch.zeros_like(ids, dtype=torch.bool)
    for step in range(max_words):
        logits, state, attention = decoder.step(ids, state, context)
        log_p, ids = _log_probabilities(logits, first=step == 0).max(dim=-1)
        ids = ids.masked_fill(ended, PAD_ID)
        yield GreedyWord(ids=ids, log_probability=log_p.masked_fill(ended, 0.0), attention=attention)
        ended = ended | (ids == END_ID)
        if bool(ended.all()):
            return


@torch.no_grad()
def beam_search(decoder: StepDecoder, features: Tensor, options: DecodeOptions) -> list[list[Hypothesis]]:
    """Return for each picture up to `beam_width` hypotheses, best first; there is always one where logits are numbers.

    At every step the K best continuations of a picture count: those by <end> leave the beam as captions, and the best
    of the others fill it up again. A picture is done when K captions have ended and none that still runs ranks above
    the worst of them. What runs into `max_words` is closed as it stands, and counts only where no caption has ended.
    Width 1 is greedy search. Pictures that are done leave the batch at once.
    features: (P, R, F).
    """
    num_pictures, width, device = features.shape[0], options.beam_width, features.device
    if num_pictures == 0:
        return []
    context, state = decoder.start(features)
    ids = torch.full((num_pictures,), START_ID, device=device)
    scores = torch.zeros((num_pictures, 1), device=device)  # a single row a picture at first, K from then on
    words = torch.empty((num_pictures, 0), dtype=torch.long, device=device)  # (B, T)
    attended = torch.empty((num_pictures, 0, context.keys.shape[1]), device=device)  # (B, T, R)
    beams = [_Beam(options) for _ in range(num_pictures)]
    searched = beams  # those whose rows are in the tensors

    for step in range(options.max_words):
        logits, state, attention = decoder.step(ids, state, context)
        # Of 2K candidates at most K are <end>, one per row, so K remain to go on with.
        count = min(2 * width, scores.shape[1] * logits.shape[1])
        total, origin, chosen = best_continuations(logits, scores, count, first=step == 0)  # (P, 2K)
        ends = chosen == END_ID
        _collect_ended(searched, total[:, :width], origin[:, :width], ends[:, :width], words, attended)
        scores, origin, chosen = best_unended(total, origin, chosen, ends, width)

        done = [beam.is_done(best, step + 1) for beam, best in zip(searched, scores[:, 0].tolist(), strict=True)]
        going = [picture for picture, is_done in enumerate(done) if not is_done]
        if not going:
            return [beam.ended for beam in beams]
        if len(going) < len(searched):
            searched = [searched[picture] for picture in going]
            kept = torch.tensor(going, device=device)
            origin, scores, chosen = (values.index_select(0, kept) for values in (origin, scores, chosen))
            context = context.of(kept)
        rows, ids = origin.flatten(), chosen.flatten()
        words, attended, attention, hidden, cell = (
            part.index_select(0, rows) for part in (words, attended, attention.float(), state.hidden, state.cell)
        )
        words = torch.cat((words, ids.unsqueeze(1)), dim=1)
        attended = torch.cat((attended, attention.unsqueeze(1)), dim=1)
        state = DecoderState(hidden, cell, origin=rows)
    rows = torch.arange(len(words), device=device).view_as(scores)
    unanswered = torch.tensor([[not beam.ended] for beam in searched], device=device).expand_as(scores)
    _collect_ended(searched, scores, rows, unanswered, words, attended)
    return [beam.ended for beam in beams]


class _Beam:
    """The hypotheses of one picture that have ended: the K best, best first; of equals the one found first."""

    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self.ended: list[Hypothesis] = []
        self.closed = False

    def add(self, ids: list[int], log_probability: float, attention: Tensor) -> None:
        """Take in a hypothesis."""
        score = rank_score(log_probability, len(ids) + 1, self.options.length_penalty)
        found = Hypothesis(ids=tuple(ids), log_probability=log_probability, score=score, attention=attention)
        insort(self.ended, found, key=lambda hypothesis: -hypothesis.score)
        del self.ended[self.options.beam_width :]

    def is_done(self, best_running: float, num_tokens: int) -> bool:
        """Tell whether the picture has its K captions, given the best log p of those that run on."""
        if not self.closed and len(self.ended) == self.options.beam_width:
            running = rank_score(best_running, num_tokens, self.options.length_penalty)
            self.closed = running <= self.ended[-1].score
        return self.closed


def _collect_ended(
    beams: list[_Beam], totals: Tensor, origin: Tensor, ends: Tensor, words: Tensor, attended: Tensor
) -> None:
    """Give each picture's beam those of its candidates that end: log p `totals`, rows `origin`, all (P, K).

    A picture that is done takes no more, though others of its batch keep its rows going.
    words: (B, T).  attended: (B, T, R).
    """
    pictures, candidates = (ends & (totals > -torch.inf)).nonzero(as_tuple=True)
    if not len(pictures):
        return
    # A few transfers, rather than a few for each that has ended.
    rows = origin[pictures, candidates]
    found = zip(
        pictures.tolist(),
        totals[pictures, candidates].tolist(),
        words.index_select(0, rows).tolist(),
        attended.index_select(0, rows).cpu(),
        strict=True,
    )
    for picture, total, ids, attention in found:
        if not beams[picture].closed:
            beams[picture].add(ids, total, attention)

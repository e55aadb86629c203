"""Beam search on a GPU by steps that are all alike: the same kernels, in the same shapes and places.

`decoding.beam_search` fetches at every step what has ended, and has the device launch some sixty kernels. Here what has
ended stays on the device, so that a step can be a CUDA graph (see recording.py), and is fetched at the end; after each
step the device is asked whether that was the last.
Pictures that are done stay in the batch, and what they do there counts nothing.

Shape letters as in decoding.py, N hypotheses. A row's place is the step at which it stood times B, plus the row; what
comes before the first step has a negative one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from caption_ray.config import DecodeOptions
from caption_ray.model.decoder_state import DecoderState
from caption_ray.model.decoding import (
    Hypothesis,
    StepDecoder,
    beam_search,
    best_continuations,
    best_unended,
    rank_score,
)
from caption_ray.model.recording import WARM_UPS, Recorder, recorded_or_none, records_on, room_for, undisturbed
from caption_ray.special_ids import END_ID, START_ID

_MOST_PICTURES = 64
_MOST_SEARCHES = 32
"""That are kept recorded: clients ask for any width, and each takes memory."""


class _Ended(NamedTuple):
    """The K captions of each picture that have ended, best first, (P, K) each; of score -inf where there is none.

    place: of their last words.
    """

    score: Tensor
    log_probability: Tensor
    place: Tensor


class FixedSearch:
    """The beam search of `decoding.beam_search` for a fixed number of pictures, with the same result.

    `begin` takes the first step and `go_on` each other one; both do all on the device, and may be recorded.
    """

    def __init__(self, decoder: StepDecoder, features: Tensor, options: DecodeOptions) -> None:
        """Take memory. features: (P, R, F), zeros, where those of pictures are to be put."""
        self._features = features
        self._decoder, self._options = decoder, options
        num_pictures, num_regions, _ = features.shape
        self._width, self._num_rows = options.beam_width, num_pictures * options.beam_width
        device = features.device
        self._closed = torch.zeros(num_pictures, dtype=torch.bool, device=device)
        self._is_over = torch.zeros((), dtype=torch.bool, device=device)
        self._is_none = torch.zeros_like(self._closed)
        self._order = torch.arange(num_pictures, device=device)
        # What stood at each place. While it is recorded a search goes on for some steps more.
        steps = options.max_words + WARM_UPS + 1
        self._origins, self._words = (
            torch.zeros((steps, self._num_rows), dtype=torch.long, device=device) for _ in range(2)
        )
        self._attended = torch.zeros((steps, self._num_rows, num_regions), device=device)
        divisors = [math.pow(step + 1, options.length_penalty) for step in range(steps)]
        self._divisors = torch.tensor(divisors, dtype=torch.double, device=device)

    def run(self, features: Tensor, begin: Callable[[], None], go_on: Callable[[], None]) -> list[list[Hypothesis]]:
        """Return for each picture what `beam_search` does, by these ways to do what `begin` and `go_on` do.

        features: as at first, but of P pictures or fewer.
        """
        self._features[: len(features)] = features
        torch.ge(self._order, len(features), out=self._is_none)
        begin()
        num_steps = 1
        while num_steps < self._options.max_words:
            go_on()
            num_steps += 1
            if bool(self._is_over):
                break
        return self._hypotheses(len(features), num_steps)

    def begin(self) -> None:
        """Take the first step, with which no caption ends."""
        self._context, state = self._decoder.start(self._features)
        ids = torch.full_like(self._order, START_ID)
        logits, state, attention = self._decoder.step(ids, state, self._context)
        scores = torch.zeros((len(ids), 1), device=ids.device)
        found = best_continuations(logits, scores, 2 * self._width, first=True)
        self._step = torch.zeros(1, dtype=torch.long, device=ids.device)
        self._closed.copy_(self._is_none)
        none = torch.full((len(ids), self._width), -torch.inf, dtype=torch.double, device=ids.device)
        self._ended = _Ended(none, none.float(), torch.zeros_like(none, dtype=torch.long))
        rows, self._scores, self._ids = self._going_on(*found, found[2] == END_ID)
        self._hidden, self._cell = (part.index_select(0, rows) for part in (state.hidden, state.cell))
        self._note(rows, attention, self._places_before())

    def go_on(self) -> None:
        """Take another step."""
        state = DecoderState(self._hidden, self._cell)
        logits, state, attention = self._decoder.step(self._ids, state, self._context)
        total, origin, chosen = best_continuations(logits, self._scores, 2 * self._width, first=False)
        divisor, before, ends = self._divisors.index_select(0, self._step), self._places_before(), chosen == END_ID
        self._collect_ended(total, origin + before, ends, divisor)
        rows, scores, ids = self._going_on(total, origin, chosen, ends)
        # Where fewer than K have ended the worst is at -inf, where only what nothing can come of is, too.
        self._closed |= scores[:, 0] / divisor <= self._ended.score[:, -1]
        torch.all(self._closed, dim=0, out=self._is_over)
        for kept, new in ((self._scores, scores), (self._ids, ids)):
            kept.copy_(new)
        torch.index_select(state.hidden, 0, rows, out=self._hidden)
        torch.index_select(state.cell, 0, rows, out=self._cell)
        self._note(rows, attention, before)

    def _places_before(self) -> Tensor:
        """Return what the place of a row of the step before is more than the row, (1,)."""
        return (self._step - 1) * self._num_rows

    def _going_on(self, total: Tensor, origin: Tensor, chosen: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best K continuations that do not end: rows (B,) that they are of, log p (P, K), words (B,)."""
        scores, origin, chosen = best_unended(total, origin, chosen, ends, self._width)
        return origin.flatten(), scores, chosen.flatten()

    def _collect_ended(self, total: Tensor, place: Tensor, ends: Tensor, divisor: Tensor) -> None:
        """Put those of a step's K best that end among the K best that have ended, those before them first."""
        ended = self._ended
        total, place, ends = (values[:, : self._width] for values in (total, place, ends))
        counts = ends & (total > -torch.inf) & ~self._closed.unsqueeze(1)
        score = torch.where(counts, total / divisor, -torch.inf)
        best, order = torch.cat((ended.score, score), dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, : self._width]
        ended.score.copy_(best[:, : self._width])
        for kept, new in ((ended.log_probability, total), (ended.place, place)):
            kept.copy_(torch.cat((kept, new), dim=1).gather(1, order))

    def _note(self, rows: Tensor, attention: Tensor, before: Tensor) -> None:
        """Write down the places that the rows of this step come from, what their words are, and where these looked."""
        for trace, new in (
            (self._origins, rows + before),
            (self._words, self._ids),
            (self._attended, attention.float().index_select(0, rows)),
        ):
            trace.index_copy_(0, self._step, new.unsqueeze(0))
        self._step += 1

    def _hypotheses(self, num_pictures: int, num_steps: int) -> list[list[Hypothesis]]:
        """Return what has been found for the first pictures after so many steps, as `beam_search` does."""
        penalty = self._options.length_penalty
        score, log_probability, place = (part[:num_pictures].tolist() for part in self._ended)
        running = self._scores[:num_pictures].tolist()
        last = (num_steps - 1) * self._num_rows
        found: list[list[tuple[float, float, int]]] = []
        for picture, ended in enumerate(zip(score, log_probability, place, strict=True)):
            found.append([entry for entry in zip(*ended, strict=True) if entry[0] > -torch.inf])
            if not found[picture]:  # closed as they stand
                found[picture] = [
                    (rank_score(total, num_steps + 1, penalty), total, last + picture * self._width + beam)
                    for beam, total in enumerate(running[picture])
                    if total > -torch.inf
                ]
        return self._traced(found, num_steps)

    def _traced(self, found: list[list[tuple[float, float, int]]], num_steps: int) -> list[list[Hypothesis]]:
        """Return hypotheses of scores, log p and the places of the last words."""
        place = torch.tensor([place for entries in found for _, _, place in entries], dtype=torch.long)
        origins = self._origins[:num_steps].flatten().cpu()
        walked = []
        for _ in range(num_steps):
            walked.append(place)
            place = place.where(place < 0, origins[place])
        places = torch.stack(walked[::-1], dim=1)  # (N, T), negative before the first word
        lengths = (places >= 0).sum(1).tolist()
        places.clamp_(min=0)
        words = self._words[:num_steps].flatten().cpu()[places].tolist()
        attended = self._attended[:num_steps].flatten(0, 1).cpu()[places]
        traces = iter(zip(lengths, words, attended, strict=True))
        hypotheses: list[list[Hypothesis]] = []
        for entries in found:
            hypotheses.append([])
            for score, log_probability, _ in entries:
                length, ids, attention = next(traces)
                hypotheses[-1].append(
                    Hypothesis(
                        ids=tuple(ids[-length:]),
                        log_probability=log_probability,
                        score=score,
                        attention=attention[-length:],
                    )
                )
        return hypotheses


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A search, and its two steps as they are launched."""

    search: FixedSearch
    begin: Callable[[], None]
    go_on: Callable[[], None]

    def __call__(self, features: Tensor) -> list[list[Hypothesis]]:
        """Search for pictures, at most as many as the search is for. features: (P, R, F)."""
        return self.search.run(features, self.begin, self.go_on)


class RecordedSearch:
    """Beam search by a decoder on one device: by CUDA graphs where it is a GPU, else by `decoding.beam_search`.

    The decoder's weights may change between searches, in place, where its `start` lays them out anew.
    """

    def __init__(self, decoder: StepDecoder, vocabulary_size: int, device: torch.device) -> None:
        self._decoder, self._vocabulary_size = decoder, vocabulary_size
        self._recorder = Recorder(device) if records_on(device) else None
        self._recorded: OrderedDict[tuple[torch.Size, DecodeOptions], _Recorded | None] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, features: Tensor, options: DecodeOptions) -> list[list[Hypothesis]]:
        """Do as `decoding.beam_search`. features: (P, R, F)."""
        # With fewer words than candidates, beams are narrower at first than later on.
        if self._recorder is None or not len(features) or self._vocabulary_size < 2 * options.beam_width:
            return beam_search(self._decoder, features, options)
        found: list[list[Hypothesis]] = []
        for part in features.split(_MOST_PICTURES):
            with undisturbed(part.device):
                recorded = self._find(self._recorder, part, options)
                found += recorded(part) if recorded else beam_search(self._decoder, part, options)
        return found

    def _find(self, recorder: Recorder, features: Tensor, options: DecodeOptions) -> _Recorded | None:
        """Return the search that is recorded for so many pictures, or a few more; None where it could not be."""
        shape = torch.Size((room_for(len(features)), *features.shape[1:]))
        if (shape, options) not in self._recorded:
            while len(self._recorded) >= _MOST_SEARCHES:
                self._recorded.popitem(last=False)
            self._recorded[shape, options] = recorded_or_none(
                f"searches for {shape[0]} pictures by width {options.beam_width}",
                lambda: self._record(recorder, features.new_zeros(shape), options),
            )
        self._recorded.move_to_end((shape, options))
        return self._recorded[shape, options]

    def _record(self, recorder: Recorder, features: Tensor, options: DecodeOptions) -> _Recorded:
        search = FixedSearch(self._decoder, features, options)
        begin, _ = recorder.record(search.begin)
        begin()  # else the next step would be warmed up on what memory happens to hold
        go_on, _ = recorder.record(search.go_on)
        return _Recorded(search, begin, go_on)

"""Where the captions of a batch stand, step by step, and averages of their pictures' values.

Shape letters: P pictures, R regions, N captions, K most captions of one picture, T steps, W words of all captions,
n captions that go on at a step, p pictures that they are of, D attended features.
"""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class CaptionLayout:
    """Where each caption stands among its picture's, step by step.

    Captions come in rows, longest first; `active` counts those that go on at each step. Pictures are ranked by their
    longest caption, so that those still spoken of are the first p too, and attention is multiplied with values as
    (p, K, R) x (p, R, D): a picture's values are read once for all its captions.
    """

    def __init__(self, picture_index: Tensor, active: Sequence[int], num_pictures: int) -> None:
        self.active = list(active)
        ranks: dict[int, int] = {}
        taken = [0] * num_pictures
        rank_of_row, place_of_row, pictures_so_far = [], [], []
        for picture in picture_index.tolist():
            rank = ranks.setdefault(picture, len(ranks))
            rank_of_row.append(rank)
            place_of_row.append(taken[rank])
            taken[rank] += 1
            pictures_so_far.append(len(ranks))
        self.active_pictures = [pictures_so_far[rows - 1] for rows in self.active]
        self.num_steps, self.per_picture = len(self.active), max(taken)
        device = picture_index.device
        self.ranked = torch.tensor(list(ranks), device=device)  # pictures by rank
        self.in_order = list(ranks) == list(range(num_pictures))
        places = torch.tensor(place_of_row, device=device)
        self.rank = torch.tensor(rank_of_row, device=device)
        self.slot = self.rank * self.per_picture + places  # of (p, K)
        self.first_slot = self.rank * (self.num_steps * self.per_picture) + places  # of (P, T, K), at step 0
        self.regular = False
        """Every picture has as many captions, all as long, one picture's after the other's."""

    @classmethod
    def of_equals(cls, num_pictures: int, per_picture: int, num_steps: int, device: torch.device) -> "CaptionLayout":
        """Return the layout of as many captions of every picture, picture by picture, all with as many words."""
        picture_index = torch.arange(num_pictures, device=device).repeat_interleave(per_picture)
        layout = cls(picture_index, [num_pictures * per_picture] * num_steps, num_pictures)
        layout.regular = True
        return layout

    def slots(self, step: int, rows: int) -> Tensor:
        """Return the places of the first rows at a step in a buffer (P, T, K, ...) flattened to (P * T * K, ...)."""
        return self.first_slot[:rows] + step * self.per_picture

    @functools.cached_property
    def rows(self) -> Tensor:
        """The row of each word, (W,), packed."""
        return torch.cat([torch.arange(count) for count in self.active]).to(self.rank.device)

    def captions(self) -> Tensor:
        """Return the rows of each picture by rank, (p, K), rising, and where it has fewer, N."""
        captions = self.slot.new_full((len(self.ranked), self.per_picture), len(self.rank))
        captions.view(-1)[self.slot] = torch.arange(len(self.rank), device=self.slot.device)
        return captions

    @functools.cached_property
    def words_before(self) -> Tensor:
        """Where each word's predecessor is, (W,), in a buffer of first states (N, ...) and all words' after."""
        starts = [0, *itertools.accumulate((len(self.rank), *self.active[:-2]))]
        places = [torch.arange(start, start + count) for start, count in zip(starts, self.active, strict=False)]
        return torch.cat(places).to(self.rank.device)

    def by_rank(self, values: Tensor) -> Tensor:
        """Return (P, ...) values of all pictures with those of the ranked ones, in their order."""
        return values if self.in_order else values.index_select(0, self.ranked)

    def by_row(self, values: Tensor) -> Tensor:
        """Return the (N, ...) rows' own of (P, ...) values by rank."""
        return values if self.per_picture == 1 else values[self.rank]

    def sum_by_picture(self, values: Tensor) -> Tensor:
        """Return (P, ...) sums over the rows (N, ...) of each picture, by rank."""
        if self.per_picture == 1:
            return values
        return values.new_zeros(len(self.ranked), *values.shape[1:]).index_add_(0, self.rank, values)

    def sum_by_caption(self, values: Tensor) -> Tensor:
        """Return (N, ...) sums over the words (W, ...) of each row."""
        return values.new_zeros(len(self.rank), *values.shape[1:]).index_add_(0, self.rows, values)


class Averaging:
    """Averages of values by attention, step by step, and their gradients.

    Weights and gradients are kept by picture, (P, T, K, ...), which makes the gradient of the values one product.
    """

    def __init__(self, layout: CaptionLayout, values: Tensor, weights: Tensor | None = None) -> None:
        self.layout, self.values = layout, values
        shape = (values.shape[0], layout.num_steps, layout.per_picture)
        self.weights = values.new_zeros(*shape, values.shape[1]) if weights is None else weights
        self.d_contexts: Tensor | None = None

    def average(self, step: int, weights: Tensor, out: Tensor) -> None:
        """Write the average (n, D) of values by weights (n, R)."""
        rows, pictures = len(weights), self.layout.active_pictures[step]
        if self.layout.per_picture == 1:
            self.weights[:rows, step, 0] = weights
            torch.bmm(weights.unsqueeze(1), self.values[:rows], out=out.unsqueeze(1))
            return
        self.weights.flatten(0, 2)[self.layout.slots(step, rows)] = weights
        averages = torch.bmm(self.weights[:pictures, step], self.values[:pictures])
        torch.index_select(averages.flatten(0, 1), 0, self.layout.slot[:rows], out=out)

    def d_weights(self, step: int, d_gated: Tensor, opening: Tensor) -> Tensor:
        """Return the gradient (n, R) of a step's weights, given that of its gated averages (n, D), and the gate."""
        if self.d_contexts is None:
            self.d_contexts = self.values.new_zeros(*self.weights.shape[:3], self.values.shape[-1])
        rows, pictures = len(d_gated), self.layout.active_pictures[step]
        if self.layout.per_picture == 1:
            here = self.d_contexts[:rows, step]
            torch.mul(d_gated.unsqueeze(1), opening.unsqueeze(1), out=here)
            return torch.bmm(here, self.values[:rows].transpose(1, 2)).squeeze(1)
        self.d_contexts.flatten(0, 2)[self.layout.slots(step, rows)] = d_gated * opening
        d_weights = torch.bmm(self.d_contexts[:pictures, step], self.values[:pictures].transpose(1, 2))
        return d_weights.flatten(0, 1).index_select(0, self.layout.slot[:rows])

    def d_values(self) -> Tensor:
        """Return the gradient of the values (P, R, D), after that of all steps' weights."""
        assert self.d_contexts is not None
        return torch.bmm(self.weights.flatten(1, 2).transpose(1, 2), self.d_contexts.flatten(1, 2))

"""Rows of pictures and captions to batches of tensors: drawing, grouping, padding.

Shape letters: P pictures, N captions (N >= P), T steps of the longest caption.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caption_ray.special_ids import END_ID, PAD_ID, START_ID

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One picture as a feed gives it: the array (a view into the feed's buffers) and its captions as sentences."""

    name: str
    picture: npt.NDArray[np.generic]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureGroup:
    """Captions of one picture that go through a step together, as ids without markers."""

    picture: npt.NDArray[np.generic]
    captions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionBatch:
    """One training step's input.

    pictures: (P, ...), grids or uint8 pictures.  ids: (N, T + 1), <start> words <end>, padded, longest first.
    lengths: per caption its words plus <end>, falling.  picture_index: (N,), each caption's row of `pictures`.
    """

    pictures: Tensor
    ids: Tensor
    lengths: tuple[int, ...]
    picture_index: Tensor

    @property
    def num_words(self) -> int:
        """Predictions in this batch: words and one <end> per caption."""
        return sum(self.lengths)

    def to(self, device: torch.device) -> "CaptionBatch":
        """Return the batch on `device`."""
        return CaptionBatch(
            pictures=self.pictures.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            lengths=self.lengths,
            picture_index=self.picture_index.to(device, non_blocking=True),
        )


def group_captions(
    picture: npt.NDArray[np.generic],
    captions: Sequence[tuple[int, ...]],
    per_group: int,
    generator: np.random.Generator,
) -> list[PictureGroup]:
    """Deal a picture's captions, as ids and in random order, into groups of at most `per_group`; all share the array.

    Captions that all go into one group keep their order.
    """
    if len(captions) > per_group:
        captions = [captions[index] for index in generator.permutation(len(captions))]
    return [
        PictureGroup(picture=picture, captions=tuple(captions[start : start + per_group]))
        for start in range(0, len(captions), per_group)
    ]


def draw_shuffled(items: Iterable[_Item], buffer_size: int, generator: np.random.Generator) -> Iterator[_Item]:
    """Yield items in random order, each drawn from a buffer of the next `buffer_size` ones; none is lost."""
    buffer: list[_Item] = []
    for item in items:
        buffer.append(item)
        if len(buffer) > buffer_size:
            yield _pop_random(buffer, generator)
    while buffer:
        yield _pop_random(buffer, generator)


def _pop_random(buffer: list[_Item], generator: np.random.Generator) -> _Item:
    index = int(generator.random() * len(buffer))  # a tenth of the time of `integers`
    buffer[index], buffer[-1] = buffer[-1], buffer[index]
    return buffer.pop()


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield lists of `size` items, the last one perhaps shorter."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def in_step(
    batches: Iterable[list[PictureGroup]], window: int, generator: np.random.Generator
) -> Iterator[list[PictureGroup]]:
    """Yield each `window` of batches in a random order, of their lengths, that depends on the generator alone.

    Workers with generators of the same seed so have their longest batches of a window in the same step, and wait less
    for each other. None is lost.
    """
    for few in batched(batches, window):
        few.sort(key=_time)
        yield from (few[place] for place in generator.permutation(len(few)))


def _time(batch: Sequence[PictureGroup]) -> int:
    """Return about how long a step takes: so many words, and each step of the loop over words as long as five."""
    lengths = [len(caption) + 1 for group in batch for caption in group.captions]
    return sum(lengths) + 5 * max(lengths)


def collate(groups: Sequence[PictureGroup]) -> CaptionBatch:
    """Stack groups into one batch, captions sorted by falling length (ties keep their order)."""
    captions = [(index, ids) for index, group in enumerate(groups) for ids in group.captions]
    captions.sort(key=lambda pair: -len(pair[1]))
    lengths = tuple(len(ids) + 1 for _, ids in captions)
    ids = np.full((len(captions), lengths[0] + 1), PAD_ID, dtype=np.int64)
    for row, (_, words) in enumerate(captions):
        ids[row, 0] = START_ID
        ids[row, 1 : len(words) + 1] = words
        ids[row, len(words) + 1] = END_ID
    return CaptionBatch(
        pictures=torch.from_numpy(np.stack([group.picture for group in groups])),
        ids=torch.from_numpy(ids),
        lengths=lengths,
        picture_index=torch.tensor([index for index, _ in captions]),
    )


def by_longest_caption(groups: Iterable[PictureGroup]) -> list[PictureGroup]:
    """Return groups by falling length of their longest captions (ties keep their order).

    So the pictures that still have words to come stay the first of a batch step after step, as its captions do, and the
    decoder need not move their regions.
    """
    return sorted(groups, key=lambda group: -max(map(len, group.captions)))


def stack_pictures(pictures: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """Return pictures of one size as a (B, 3, side, side) uint8 tensor."""
    return torch.from_numpy(np.stack(pictures))

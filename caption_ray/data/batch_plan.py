"""A worker's share of a split to batches: views and crops, order, captions as ids.

A share comes as Arrow tables with `name`, `captions`, a fixed-size binary `picture` and any number of `view_*`. What
does not change from epoch to epoch is made of a table once (`BatchPlan.read`); an epoch (`train_batches`) then costs
some microseconds a picture.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from caption_ray.data import images
from caption_ray.data.batches import (
    CaptionBatch,
    PictureGroup,
    PictureRow,
    batched,
    by_longest_caption,
    collate,
    draw_shuffled,
    group_captions,
    in_step,
)
from caption_ray.data.picture_format import PictureFormat
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary

_Keys = npt.NDArray[np.uint64]

_WINDOW = 16
"""Batches among which workers find one as long as the others'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePart:
    """Some pictures of a share: their arrays are views into the feed's buffers, captions are ids without markers."""

    views: tuple[npt.NDArray[np.generic], ...]
    """The views of all pictures, (P, ...) each; the first is the picture itself."""
    captions: list[tuple[tuple[int, ...], ...]]
    keys: _Keys
    """A hash of each name, (P,)."""
    may_mirror: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How a worker makes batches of its share."""

    picture_format: PictureFormat
    crop_to: int | None
    vocabulary: Vocabulary
    captions_per_picture: int
    groups_per_batch: int
    shuffle_buffer: int
    seed: int
    rank: int
    in_step: bool = False
    """Whether batches come in an order of lengths that workers share (see batches.in_step)."""

    def read(self, tables: Iterable[pa.Table]) -> Iterator[PicturePart]:
        """Yield a share's pictures ready for `train_batches`, without a copy of their bytes."""
        for part in _parts(tables):
            names = [name for name in part.schema.names if name.startswith("view_")]
            sentences = part["captions"].to_pylist()
            yield PicturePart(
                views=tuple(self.picture_format.read(part[name]) for name in ("picture", *names)),
                captions=[self._ids(captions) for captions in sentences],
                keys=hash_names(part["name"].to_pylist()),
                may_mirror=np.array([self.crop_to is not None and images.may_mirror(each) for each in sentences]),
            )

    def train_batches(self, parts: Iterable[PicturePart], epoch: int, *, resident: bool) -> Iterator[CaptionBatch]:
        """Yield an epoch's batches in an order that depends on seed, epoch, rank and `in_step` alone.

        resident: the parts stay in memory anyway. Where they do not, pictures that wait to be drawn are copied, lest
        each hold on to its feed's block.
        """
        generator = images.seeded_generator(self.seed, "order", epoch, self.rank)
        groups = (
            group
            for part in parts
            for picture, captions in zip(self._pictures(part, epoch, resident), part.captions, strict=True)
            for group in group_captions(picture, captions, self.captions_per_picture, generator)
        )
        batches: Iterator[list[PictureGroup]]
        batches = batched(draw_shuffled(groups, self.shuffle_buffer, generator), self.groups_per_batch)
        if self.in_step:
            batches = in_step(batches, _WINDOW, images.seeded_generator(self.seed, "lengths", epoch))
        yield from (collate(by_longest_caption(batch)) for batch in batches)

    def rows(self, tables: Iterable[pa.Table]) -> Iterator[PictureRow]:
        """Yield a share's pictures in order, as they are."""
        for part in _parts(tables):
            pictures = self.picture_format.read(part["picture"])
            for name, picture, captions in zip(
                part["name"].to_pylist(), pictures, part["captions"].to_pylist(), strict=True
            ):
                yield PictureRow(name=name, picture=picture, captions=tuple(captions))

    def whole_batch(self, rows: Iterable[PictureRow]) -> CaptionBatch:
        """Return the batch of all captions of some pictures, for the dev loss."""
        return collate([PictureGroup(picture=row.picture, captions=self._ids(row.captions)) for row in rows])

    def _ids(self, captions: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.vocabulary.encode(tokenize(caption))) for caption in captions)

    def _pictures(self, part: PicturePart, epoch: int, resident: bool) -> Iterator[npt.NDArray[np.generic]]:
        """Yield each picture in the view, or cropped to the window, that is its own in this epoch."""
        if self.crop_to is not None:
            return self._crops(part, epoch, self.crop_to)
        chosen = self._draw("view", epoch, part.keys, len(part.views)).tolist()
        pictures = (part.views[view][row] for row, view in enumerate(chosen))
        return pictures if resident else (picture.copy() for picture in pictures)

    def _crops(self, part: PicturePart, epoch: int, side: int) -> Iterator[npt.NDArray[np.uint8]]:
        (pictures,) = part.views
        places = pictures.shape[2] - side + 1
        tops, lefts = (self._draw(what, epoch, part.keys, places).tolist() for what in ("top", "left"))
        mirrored = ((self._draw("mirror", epoch, part.keys, 2) == 1) & part.may_mirror).tolist()
        for picture, top, left, mirror in zip(pictures, tops, lefts, mirrored, strict=True):
            yield images.crop(picture.astype(np.uint8, copy=False), side, top, left, mirror)

    def _draw(self, what: str, epoch: int, keys: _Keys, high: int) -> npt.NDArray[np.uint64]:
        """Return a number below `high` for each key, which depends on seed, `what`, epoch and key alone."""
        stream = images.seeded_generator(self.seed, what, epoch).integers(1 << 64, dtype=np.uint64)
        numbers: _Keys = mix(keys ^ stream) % np.uint64(high)
        return numbers


def hash_names(names: Iterable[str]) -> _Keys:
    """Return 64 bits for each name, alike in every process and on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def mix(values: _Keys) -> _Keys:
    """Return values that look random though their arguments are alike: splitmix64's finaliser (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Keys = values ^ (values >> np.uint64(31))
    return mixed


def _parts(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Yield the contiguous pieces of tables, none of them empty."""
    for table in tables:
        yield from (part for part in table.to_batches() if part.num_rows)

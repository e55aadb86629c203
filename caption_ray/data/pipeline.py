"""Pictures to training workers through Ray Data: streamed from their bytes, or as cached features.

Both feeds give tables with `name`, `captions` and a fixed-size binary `picture`, so that one training function serves.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train

from caption_ray import storage
from caption_ray.data import images
from caption_ray.data.batches import (
    CaptionBatch,
    PictureFormat,
    PictureGroup,
    PictureRow,
    batched,
    collate,
    draw_shuffled,
    group_captions,
    read_rows,
)
from caption_ray.data.feature_manifest import FeatureManifest
from caption_ray.data.shards import DatasetManifest
from caption_ray.data.tables import read_shards
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary

_DECODE_ROWS = 32
_MAX_BLOCK_BYTES = 8 << 20
_MIN_BLOCK_BYTES = 64 << 10
_BLOCKS_PER_SPLIT = 16
"""Blocks are small enough that a split has about this many: they are what is dealt out to workers."""

_MATERIALISED_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One split as a Ray dataset, and how to read its pictures."""

    dataset: ray.data.Dataset
    picture_format: PictureFormat
    crop_to: int | None
    """Side to which workers crop at random, or None where pictures are taken as they come."""


def stream_feed(folder: str, manifest: DatasetManifest, split: str, side: int, augment: bool) -> Feed:
    """Return the pictures of a split, decoded anew in every pass by Ray Data's tasks.

    With `augment` they come larger than `side`, for workers to take random crops of.
    """
    stored = images.padded_side(side) if augment else side
    paths = [storage.join(folder, file.name) for file in manifest.splits[split].files]
    dataset = _read(paths, ["name", "captions", "image"], manifest.splits[split].num_pictures * 3 * stored**2)
    decoded = dataset.map_batches(
        _decode_pictures, fn_kwargs={"side": stored}, batch_size=_DECODE_ROWS, batch_format="pyarrow"
    )
    return Feed(
        dataset=decoded,
        picture_format=PictureFormat(shape=(3, stored, stored), dtype="|u1"),
        crop_to=side if augment else None,
    )


def cached_feed(folder: str, manifest: FeatureManifest, split: str, augment: bool) -> Feed:
    """Return the cached features of a split; with `augment` all their views.

    They are read once into the object store where they take a small part of it, and else anew in every epoch.
    """
    files = manifest.splits[split]
    views = manifest.num_views if augment and split == "train" else 1
    columns = ["name", "captions", "picture", *(f"view_{view}" for view in range(1, views))]
    paths = [storage.join(folder, file.name) for file in files]
    num_bytes = sum(file.num_rows for file in files) * 2 * int(np.prod(manifest.shape)) * views
    dataset = _read(paths, columns, num_bytes)
    if num_bytes < _MATERIALISED_SHARE * ray.cluster_resources().get("object_store_memory", 0):
        dataset = dataset.materialize()
    return Feed(dataset=dataset, picture_format=manifest.picture_format, crop_to=None)


def _read(paths: list[str], columns: list[str], num_bytes: int) -> ray.data.Dataset:
    dataset = read_shards(paths, columns)
    # Whole files would be too coarse to deal out.
    context = dataset.context
    context.target_max_block_size = min(max(num_bytes // _BLOCKS_PER_SPLIT, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)
    return dataset


def _decode_pictures(table: pa.Table, side: int) -> pa.Table:
    squares = np.empty((table.num_rows, 3, side, side), dtype=np.uint8)
    for square, data in zip(squares, table["image"], strict=True):
        square[:] = images.decode_square(data.as_py(), side)
    # Arrow takes the array's memory as it is: bytes row by row would be copied twice.
    pictures = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(3 * side * side), table.num_rows, [None, pa.py_buffer(squares)]
    )
    return pa.table({"name": table["name"], "captions": table["captions"], "picture": pictures})


class ExactSplit(ray.train.DataConfig):  # type: ignore[misc]
    """Deals a dataset's blocks out to the workers, the same way in every epoch, without dropping a row.

    Ray's own split drops up to world size - 1 rows to make the shares equal. Here shares differ by up to a block, and
    the training loop lets workers run out of data at different steps.
    """

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: object,  # noqa: ARG002 - the signature is Ray's
        worker_node_ids: object,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return each worker's iterators by dataset name; Ray calls it."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            copy = dataset.copy(dataset)
            copy.context.execution_options.preserve_order = True
            for rank, iterator in enumerate(copy.streaming_split(world_size, equal=False)):
                shards[rank][name] = iterator
        return shards


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

    def train_batches(self, tables: Iterable[pa.Table], epoch: int) -> Iterator[CaptionBatch]:
        """Yield an epoch's batches in an order that depends on seed, epoch and rank alone."""
        generator = images.seeded_generator(self.seed, "order", epoch, self.rank)
        rows = read_rows(tables, self.picture_format, self._choose_view(epoch))
        groups = (
            group
            for row in rows
            for group in group_captions(
                self._augmented(row, epoch), self._ids(row), self.captions_per_picture, generator
            )
        )
        shuffled = draw_shuffled(groups, self.shuffle_buffer, generator)
        for batch in batched(shuffled, self.groups_per_batch):
            yield collate(batch)

    def rows(self, tables: Iterable[pa.Table]) -> Iterator[PictureRow]:
        """Yield a share's pictures in order, as they are."""
        return read_rows(tables, self.picture_format, lambda _name, _views: 0)

    def whole_batch(self, rows: Iterable[PictureRow]) -> CaptionBatch:
        """Return the batch of all captions of some pictures, for the dev loss."""
        return collate([PictureGroup(picture=row.picture, captions=tuple(map(tuple, self._ids(row)))) for row in rows])

    def _ids(self, row: PictureRow) -> list[list[int]]:
        return [self.vocabulary.encode(tokenize(caption)) for caption in row.captions]

    def _choose_view(self, epoch: int) -> Callable[[str, int], int]:
        def choose(name: str, num_views: int) -> int:
            return int(images.seeded_generator(self.seed, "view", epoch, name).integers(num_views))

        return choose

    def _augmented(self, row: PictureRow, epoch: int) -> PictureRow:
        if self.crop_to is None:
            return row
        generator = images.seeded_generator(self.seed, "crop", epoch, row.name)
        picture = images.augment(
            row.picture.astype(np.uint8, copy=False), self.crop_to, images.may_mirror(row.captions), generator
        )
        return PictureRow(name=row.name, picture=picture, captions=row.captions)


def shard_tables(shard: ray.data.DataIterator) -> Iterator[pa.Table]:
    """Yield a worker's share of a dataset, block by block, the next one fetched meanwhile."""
    yield from shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)

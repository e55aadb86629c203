"""Pictures to training workers through Ray Data: streamed from their bytes, or as cached features.

Both feeds give tables with `name`, `captions` and a fixed-size binary `picture`, so that one training function serves.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train

from caption_ray import storage
from caption_ray.cluster import KEEP_MEMORY, node_resources
from caption_ray.data import images
from caption_ray.data.feature_manifest import FeatureManifest
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.shards import MAX_GROUP_BYTES, MAX_GROUP_ROWS, DatasetManifest, ShardFile
from caption_ray.data.staging import StagedShard

_MAX_TASK_BYTES = 48 << 20
"""A task reads a row group, or several of few bytes; it hands out up to about this much, or MAX_GROUP_ROWS pictures."""

_TASKS_PER_CPU = 2
"""Tasks submitted for each CPU, which runs one: Ray Data looks for those that have ended only some times a second."""

_MAX_BLOCK_BYTES = 16 << 20
_BLOCKS_PER_SPLIT = 64
"""Blocks are small enough that a split has about this many: they are what is dealt out to workers."""

_BLOCKS_PER_CPU = 4
"""Blocks that may wait for each one that the workers have fetched, for each CPU that fills them."""

RESIDENT_SHARE = 0.4
"""Of a node's object store, what a feed may take for good."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One split as a Ray dataset, and how to read its pictures."""

    dataset: ray.data.Dataset
    picture_format: PictureFormat
    crop_to: int | None
    """Side to which workers crop at random, or None where pictures are taken as they come."""
    num_bytes: int
    """What all its pictures take in memory."""
    resident: bool
    """It is small enough for each worker to fetch its share once and hold it."""


def stream_feed(
    folder: str, manifest: DatasetManifest, split: str, side: int, augment: bool, stage: str | None = None
) -> Feed:
    """Return the pictures of a split, decoded anew in every pass by Ray Data's tasks.

    With `augment` they come larger than `side`, for workers to take random crops of.
    stage: a folder on each node, to which shards are copied once (see data.staging).
    """
    stored = images.padded_side(side) if augment else side
    reading = _Reading(columns=["name", "captions", "image"], picture_bytes=3 * stored**2, decode_to=stored)
    files = manifest.splits[split].files
    return Feed(
        dataset=_read(folder, files, reading, stage),
        picture_format=PictureFormat(shape=(3, stored, stored), dtype="|u1"),
        crop_to=side if augment else None,
        num_bytes=sum(file.num_rows for file in files) * reading.picture_bytes,
        resident=False,
    )


def cached_feed(folder: str, manifest: FeatureManifest, split: str, augment: bool, stage: str | None = None) -> Feed:
    """Return the cached features of a split; with `augment` all their views.

    Workers hold them where they take a small part of every node's object store, and else have them read anew in every
    epoch. stage: as for `stream_feed`.
    """
    files = manifest.splits[split]
    views = manifest.num_views if augment and split == "train" else 1
    reading = _Reading(
        columns=["name", "captions", "picture", *(f"view_{view}" for view in range(1, views))],
        picture_bytes=2 * int(np.prod(manifest.shape)) * views,
        decode_to=None,
    )
    num_bytes = sum(file.num_rows for file in files) * reading.picture_bytes
    return Feed(
        dataset=_read(folder, files, reading, stage),
        picture_format=manifest.picture_format,
        crop_to=None,
        num_bytes=num_bytes,
        resident=num_bytes < RESIDENT_SHARE * smallest_object_store(),
    )


def smallest_object_store() -> float:
    """Return the bytes of the smallest object store of the cluster's nodes."""
    stores = (node.get("object_store_memory", 0.0) for node in node_resources())
    return min(stores, default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What is read of each shard: the columns, what a picture takes in memory, and the side that it is decoded to."""

    columns: list[str]
    picture_bytes: int
    decode_to: int | None


def _read(folder: str, files: Sequence[ShardFile], reading: _Reading, stage: str | None) -> ray.data.Dataset:
    """Return the rows of some shards in order.

    A task reads some row groups of a file, decodes them and hands out a block at a time: pictures' bytes go from the
    file into the block, and no plan is made of the shards anew in every epoch, as Ray's own reader does.
    """
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    task_rows = max(1, min(MAX_GROUP_ROWS, _MAX_TASK_BYTES // reading.picture_bytes))
    pieces = []
    for file in files:
        num_groups = max(-(-file.num_rows // MAX_GROUP_ROWS), file.num_bytes // MAX_GROUP_BYTES)
        of = min(num_groups, -(-file.num_rows // task_rows))  # more would leave some without a row group
        shard = StagedShard(location=storage.join(folder, file.name), file=file, stage=stage).model_dump_json()
        pieces += [{"shard": shard, "piece": piece, "of": of} for piece in range(of)]
    num_bytes = sum(file.num_rows for file in files) * reading.picture_bytes
    block_rows = max(1, min(num_bytes // _BLOCKS_PER_SPLIT, _MAX_BLOCK_BYTES) // reading.picture_bytes)
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _read_pieces,
        fn_args=(reading, block_rows),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=max(1, min(_TASKS_PER_CPU * num_cpus, len(pieces)))),
        runtime_env={"env_vars": KEEP_MEMORY},
    )
    context = dataset.context
    context.target_max_block_size = block_rows * reading.picture_bytes
    context.execution_options.preserve_order = True
    # With reservations Ray Data takes the cluster for empty in the first second of every epoch, and runs one task.
    context.op_resource_reservation_enabled = False
    # A task would stand still after every second block until Ray Data looks at it.
    context._max_num_blocks_in_streaming_gen_buffer = None
    # Else the object store is filled with what the workers will want later.
    context.downstream_capacity_backpressure_ratio = float(_BLOCKS_PER_CPU * num_cpus)
    return dataset


def _read_pieces(pieces: pa.Table, reading: _Reading, block_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of pieces of shards, `block_rows` at a time."""
    for piece in pieces.to_pylist():
        filesystem, path = storage.open_location(StagedShard.model_validate_json(piece["shard"]).local())
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            first, last = (
                number * file.num_row_groups // piece["of"] for number in (piece["piece"], piece["piece"] + 1)
            )
            groups = list(range(first, last))
            for rows in file.iter_batches(block_rows, row_groups=groups, columns=reading.columns):
                table = pa.Table.from_batches([rows]).select(reading.columns)
                yield table if reading.decode_to is None else _decode_pictures(table, reading.decode_to)


def _decode_pictures(table: pa.Table, side: int) -> pa.Table:
    squares = images.decode_squares(table["image"].to_pylist(), side)
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


class Undivided(ray.train.DataConfig):  # type: ignore[misc]
    """Hands all of a dataset to the one worker there is: no actor is started to deal its blocks out."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: object,  # noqa: ARG002 - the signature is Ray's
        worker_node_ids: object,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return the worker's iterators by dataset name; Ray calls it."""
        assert world_size == 1
        return [{name: dataset.iterator() for name, dataset in datasets.items()}]


class Share(Generic[_Item]):
    """A worker's share of a dataset as what `read` makes of its tables; each pass has the same in the same order.

    A resident share is fetched once; its tables lie in the node's object store and are gone over again without Ray.
    """

    def __init__(
        self, shard: ray.data.DataIterator, read: Callable[[Iterable[pa.Table]], Iterator[_Item]], *, resident: bool
    ) -> None:
        self.resident = resident
        self._shard = shard
        self._read = read
        self._held: list[_Item] | None = None

    def __iter__(self) -> Iterator[_Item]:
        if self._held is not None:
            return iter(self._held)
        items = self._read(shard_tables(self._shard))
        if not self.resident:
            return items
        self._held = list(items)
        return iter(self._held)


def shard_tables(shard: ray.data.DataIterator) -> Iterator[pa.Table]:
    """Yield a worker's share of a dataset, block by block, the next one fetched meanwhile."""
    yield from shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)

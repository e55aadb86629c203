"""Shards as a Ray dataset."""

from collections.abc import Sequence

import ray.data

from caption_ray import storage

_BLOCK_BYTES = 8 << 20
_SMALL = 2000


def read_shards(paths: Sequence[str], columns: Sequence[str]) -> ray.data.Dataset:
    """Return some columns of Parquet shards that lie on one file system, rows in the order of `paths`."""
    filesystem, _ = storage.open_location(paths[0])
    dataset = ray.data.read_parquet([storage.open_location(path)[1] for path in paths], filesystem=filesystem)
    dataset = dataset.select_columns(list(columns))
    dataset.context.execution_options.preserve_order = True
    return dataset


def deal_out(dataset: ray.data.Dataset, num_pictures: int, num_actors: int) -> ray.data.Dataset:
    """Return the pictures in blocks small enough to show progress, to keep memory flat, and to keep all actors busy."""
    dataset.context.target_max_block_size = _BLOCK_BYTES
    if num_pictures < _SMALL:  # so few may come as a single block, which would keep all but one actor idle
        return dataset.materialize().repartition(2 * num_actors)
    return dataset

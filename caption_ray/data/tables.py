"""Shards as a Ray dataset."""

from collections.abc import Sequence

import ray.data

from caption_ray import storage


def read_shards(paths: Sequence[str], columns: Sequence[str]) -> ray.data.Dataset:
    """Return some columns of Parquet shards that lie on one file system, rows in the order of `paths`."""
    filesystem, _ = storage.open_location(paths[0])
    dataset = ray.data.read_parquet([storage.open_location(path)[1] for path in paths], filesystem=filesystem)
    dataset = dataset.select_columns(list(columns))
    dataset.context.execution_options.preserve_order = True
    return dataset

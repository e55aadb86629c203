"""The feeds through Ray Data: every picture once, in the same order, to the same worker in every epoch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import ray.data

from caption_ray import storage
from caption_ray.data.pipeline import ExactSplit, Feed, shard_tables, stream_feed
from caption_ray.data.shards import load_manifest


@pytest.fixture(scope="module")
def feed(data: str) -> Feed:
    return stream_feed(data, load_manifest(data), "train", side=32, augment=False)


def names_of(shard: ray.data.DataIterator) -> list[str]:
    return [name for table in shard_tables(shard) for name in table["name"].to_pylist()]


def names_of_all(shards: Sequence[ray.data.DataIterator]) -> list[list[str]]:
    """Go over the shards together, as workers do."""
    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(names_of, shards))


def test_two_workers_have_every_picture_once_and_the_same_in_every_epoch(data: str, feed: Feed) -> None:
    files = load_manifest(data).splits["train"].files
    stored = [name for file in files for name in pq.read_table(storage.join(data, file.name))["name"].to_pylist()]
    shards = [shard["train"] for shard in ExactSplit().configure({"train": feed.dataset}, 2, None, None)]

    first, second = names_of_all(shards), names_of_all(shards)

    assert len(stored) == 328
    assert sorted(first[0] + first[1]) == sorted(stored)
    assert second == first
    places = {name: place for place, name in enumerate(stored)}
    for names in first:
        assert 100 < len(names) < 228  # about half
        assert [places[name] for name in names] == sorted(places[name] for name in names)


def test_ray_data_still_has_the_options_that_a_feed_sets(feed: Feed) -> None:
    """A context takes any attribute without a word, also one that no version of Ray looks at."""
    options = vars(ray.data.DataContext())
    for name, value in {
        "op_resource_reservation_enabled": False,
        "_max_num_blocks_in_streaming_gen_buffer": None,
        "downstream_capacity_backpressure_ratio": 8.0,  # four blocks for each of two CPUs
    }.items():
        assert name in options
        assert options[name] != value
        assert getattr(feed.dataset.context, name) == value

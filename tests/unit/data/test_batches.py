from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caption_ray.data.batches import (
    PictureGroup,
    batched,
    by_longest_caption,
    collate,
    draw_shuffled,
    group_captions,
    in_step,
    stack_pictures,
)
from caption_ray.data.picture_format import PictureFormat


def picture(value: int) -> np.ndarray:
    return np.full((2, 3), value, dtype=np.float16)


def test_collate_by_hand() -> None:
    batch = collate(
        [
            PictureGroup(picture=picture(1), captions=((7, 8), (9,))),
            PictureGroup(picture=picture(2), captions=((4, 5, 6), (10, 11))),
        ]
    )
    assert batch.ids.tolist() == [
        [1, 4, 5, 6, 2],
        [1, 7, 8, 2, 0],
        [1, 10, 11, 2, 0],
        [1, 9, 2, 0, 0],
    ]
    assert batch.lengths == (4, 3, 3, 2)
    assert batch.num_words == 12
    assert batch.picture_index.tolist() == [1, 0, 1, 0]
    assert batch.pictures.shape == (2, 2, 3)
    assert batch.pictures[:, 0, 0].tolist() == [1, 2]
    assert (batch.ids.dtype, batch.pictures.dtype) == (torch.int64, torch.float16)


captions = st.lists(st.integers(4, 99), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.lists(captions, min_size=1, max_size=5).map(tuple), min_size=1, max_size=5))
def test_collate_keeps_every_caption_with_its_picture(groups: list[tuple[tuple[int, ...], ...]]) -> None:
    batch = collate([PictureGroup(picture=picture(n), captions=group) for n, group in enumerate(groups)])
    found = Counter()
    for row, length, index in zip(batch.ids.tolist(), batch.lengths, batch.picture_index.tolist(), strict=True):
        assert (row[0], row[length]) == (1, 2)
        assert set(row[length + 1 :]) <= {0}
        found[index, tuple(row[1:length])] += 1
    assert found == Counter((n, caption) for n, group in enumerate(groups) for caption in group)
    assert list(batch.lengths) == sorted(batch.lengths, reverse=True)


def test_groups_go_by_their_longest_captions() -> None:
    groups = [
        PictureGroup(picture=picture(n), captions=tuple((9,) * length for length in lengths))
        for n, lengths in enumerate([(1, 2), (1, 4), (3,), (2, 2)])
    ]
    ordered = by_longest_caption(groups)
    assert [group.picture[0, 0] for group in ordered] == [1, 2, 0, 3]
    # The pictures of the captions that go on are the first ones, whichever step it is.
    assert list(dict.fromkeys(collate(ordered).picture_index.tolist())) == [0, 1, 2, 3]


def test_batch_moves_as_a_whole() -> None:
    batch = collate([PictureGroup(picture=picture(1), captions=((7, 8),))])
    moved = batch.to(torch.device("meta"))
    assert {moved.pictures.device.type, moved.ids.device.type, moved.picture_index.device.type} == {"meta"}
    assert moved.lengths == (3,)


@given(st.lists(st.integers()), st.integers(1, 9), st.integers(0, 99))
def test_draw_shuffled_loses_nothing(items: list[int], buffer_size: int, seed: int) -> None:
    drawn = list(draw_shuffled(items, buffer_size, np.random.default_rng(seed)))
    assert Counter(drawn) == Counter(items)
    assert drawn == list(draw_shuffled(items, buffer_size, np.random.default_rng(seed)))


def test_draw_shuffled_draws_from_the_next_ones_only() -> None:
    drawn = list(draw_shuffled(range(100), 9, np.random.default_rng(0)))
    # With nine waiting and one more arriving, the n-th drawn is one of the first n + 10.
    assert all(item <= place + 9 for place, item in enumerate(drawn))
    assert drawn != list(range(100))
    assert drawn != list(draw_shuffled(range(100), 9, np.random.default_rng(1)))


def test_draw_shuffled_reaches_every_order() -> None:
    orders = {tuple(draw_shuffled("abc", 3, np.random.default_rng(seed))) for seed in range(100)}
    assert len(orders) == 6


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [[0, 1]]), (3, [[0, 1, 2]]), (5, [[0, 1, 2], [3, 4]])])
def test_batched(count: int, expected: list[list[int]]) -> None:
    assert list(batched(range(count), 3)) == expected


def of_lengths(*lengths: int) -> list[PictureGroup]:
    """Return a batch of a group each with a caption of so many words."""
    return [PictureGroup(picture=picture(0), captions=((4,) * length,)) for length in lengths]


def test_workers_have_batches_of_like_length_in_the_same_step() -> None:
    """Two windows of three and a rest of one; in each window the order is the same, whatever the lengths are."""
    long, middle, short = (8, 8), (4, 4), (1, 1)
    orders = set()
    for seed in range(20):
        one = [of_lengths(*each) for each in (long, short, middle, middle, long, short, (2,))]
        other = [of_lengths(*each) for each in ((3, 3), (2, 2), (9, 9), (5, 5), (6, 6), (7, 7), (1,))]
        found = [
            [len(batch[0].captions[0]) for batch in in_step(batches, 3, np.random.default_rng(seed))]
            for batches in (one, other)
        ]
        places = [[1, 4, 8].index(length) for length in found[0][:6]]
        assert found[1][:3] == [[2, 3, 9][place] for place in places[:3]]
        assert found[1][3:6] == [[5, 6, 7][place] for place in places[3:]]
        assert [each[6] for each in found] == [2, 1]
        orders.add(tuple(places))
    assert len(orders) > 10  # nor is it the same in every window, or always the longest first


def test_a_long_caption_takes_as_long_as_more_words_in_short_ones() -> None:
    """22 words and <end>, in 23 steps, count 138; 50 in 10 steps 100. So it goes with the longer of two others."""
    for seed in range(9):
        one = in_step([of_lengths(22), of_lengths(9, 9, 9, 9, 9)], 2, np.random.default_rng(seed))
        other = in_step([of_lengths(1), of_lengths(2)], 2, np.random.default_rng(seed))
        sizes = [(len(mine), len(theirs[0].captions[0])) for mine, theirs in zip(one, other, strict=True)]
        assert sorted(sizes) == [(1, 2), (5, 1)]


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 9), st.integers(0, 99))
def test_in_step_loses_nothing(lengths: list[int], window: int, seed: int) -> None:
    found = list(in_step([of_lengths(each) for each in lengths], window, np.random.default_rng(seed)))
    assert sorted(len(batch[0].captions[0]) for batch in found) == sorted(lengths)


IDS = [(4,), (5,), (6,), (7,), (8,)]


@given(st.integers(1, 6), st.integers(0, 99))
def test_group_captions_deals_each_caption_once(per_group: int, seed: int) -> None:
    groups = group_captions(picture(5), IDS, per_group, np.random.default_rng(seed))
    dealt = [caption for group in groups for caption in group.captions]
    assert sorted(dealt) == [(4,), (5,), (6,), (7,), (8,)]
    assert [len(group.captions) for group in groups[:-1]] == [per_group] * (len(groups) - 1)
    assert 1 <= len(groups[-1].captions) <= per_group


def test_group_captions_mixes_by_the_seed_alone() -> None:
    orders = [
        [group.captions for group in group_captions(picture(5), IDS, 2, np.random.default_rng(seed))]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_groups_share_the_picture_as_it_is() -> None:
    array = picture(5)
    assert all(group.picture is array for group in group_captions(array, IDS, 2, np.random.default_rng(0)))


def test_pictures_are_read_without_a_copy_from_where_a_column_begins() -> None:
    column = pa.array([picture(number).tobytes() for number in range(4)], pa.binary(12)).slice(1, 2)
    pictures = PictureFormat(shape=(2, 3), dtype="<f2").read(column)
    assert pictures[:, 0, 0].tolist() == [1, 2]
    assert np.shares_memory(pictures, np.frombuffer(column.buffers()[1], dtype=np.uint8))


def test_stack_pictures() -> None:
    stacked = stack_pictures([np.full((3, 2, 2), value, dtype=np.uint8) for value in (7, 9)])
    assert stacked.shape == (2, 3, 2, 2)
    assert stacked[:, 0, 0, 0].tolist() == [7, 9]

"""A worker's batches from tables at hand: crops, mirrored or not, and views; and the hashes that choose them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from caption_ray.data.batch_plan import BatchPlan, hash_names, mix
from caption_ray.data.batches import CaptionBatch
from caption_ray.data.picture_format import PictureFormat
from caption_ray.text.vocabulary import SPECIAL_WORDS, Vocabulary

STORED, SIDE = 18, 16
EPOCHS = range(40)
CAPTIONS = {
    "plain.jpg": ["A dog runs .", "A dog"],
    "sided.jpg": ["A dog runs .", "A ball on the left"],
}
PLAN = BatchPlan(
    picture_format=PictureFormat(shape=(3, STORED, STORED), dtype="|u1"),
    crop_to=SIDE,
    vocabulary=Vocabulary((*SPECIAL_WORDS, "a", "dog", "runs")),
    captions_per_picture=2,
    groups_per_batch=2,
    shuffle_buffer=8,
    seed=0,
    rank=0,
)


def batches(plan: BatchPlan, table: pa.Table, epoch: int, *, resident: bool = True) -> list[CaptionBatch]:
    return list(plan.train_batches(plan.read([table]), epoch, resident=resident))


def draw_ruler(number: int) -> np.ndarray:
    """Return a picture whose channels hold each pixel's row and column, and the picture's number."""
    rows, columns = np.mgrid[:STORED, :STORED]
    return np.stack([rows, columns, np.full_like(rows, number)]).astype(np.uint8)


def picture_table(captions: dict[str, list[str]] = CAPTIONS) -> pa.Table:
    return pa.table(
        {
            "name": list(captions),
            "captions": list(captions.values()),
            "picture": pa.array(
                [draw_ruler(number).tobytes() for number in range(len(captions))], pa.binary(3 * STORED**2)
            ),
        }
    )


def place(crop: np.ndarray) -> tuple[int, int, bool]:
    """Return a ruler crop's top, left, and whether it is mirrored; nothing else may have happened to it."""
    top, left = int(crop[0].min()), int(crop[1].min())
    mirrored = bool(crop[1, 0, 0] > crop[1, 0, -1])
    window = draw_ruler(int(crop[2, 0, 0]))[:, top : top + SIDE, left : left + SIDE]
    assert np.array_equal(crop, window[:, :, ::-1] if mirrored else window)
    return top, left, mirrored


def places(plan: BatchPlan, name: str) -> list[tuple[int, int, bool]]:
    """Return where a picture's crop lies in each epoch."""
    number = list(CAPTIONS).index(name)
    found = []
    for epoch in EPOCHS:
        (batch,) = batches(plan, picture_table(), epoch)
        (crop,) = [crop for crop in batch.pictures.numpy() if crop[2, 0, 0] == number]
        found.append(place(crop))
    return found


def test_crops_change_from_epoch_to_epoch_and_take_every_window() -> None:
    found = places(PLAN, "plain.jpg")
    assert {(top, left) for top, left, _ in found} == {(top, left) for top in range(3) for left in range(3)}
    assert 10 <= sum(mirrored for _, _, mirrored in found) <= 30
    windows = [[window[:2] for window in places(PLAN, name)] for name in CAPTIONS]
    assert windows[0] != windows[1]


def test_crops_depend_on_seed_epoch_and_name_alone() -> None:
    found = places(PLAN, "plain.jpg")
    assert places(PLAN, "plain.jpg") == found
    assert places(replace(PLAN, rank=1, shuffle_buffer=1), "plain.jpg") == found
    assert places(replace(PLAN, seed=1), "plain.jpg") != found


def test_a_picture_whose_captions_speak_of_left_or_right_is_never_mirrored() -> None:
    found = places(PLAN, "sided.jpg")
    assert not any(mirrored for _, _, mirrored in found)
    assert len(set(found)) == 9


def test_batches_are_bytes_of_the_size_cropped_to() -> None:
    (batch,) = batches(PLAN, picture_table(), 0)
    assert (batch.pictures.shape, batch.pictures.dtype) == ((2, 3, SIDE, SIDE), torch.uint8)
    # "a ball on the left" has four unknown words; each caption has an <end>.
    assert batch.lengths == (6, 4, 4, 3)
    assert sorted(batch.ids[:, 1:].tolist()) == [
        [4, 3, 3, 3, 3, 2],
        [4, 5, 2, 0, 0, 0],
        [4, 5, 6, 2, 0, 0],
        [4, 5, 6, 2, 0, 0],
    ]


def test_captions_of_a_picture_share_its_crop_in_every_batch() -> None:
    plan = replace(PLAN, captions_per_picture=1, groups_per_batch=1)
    for epoch in range(5):
        crops: dict[int, list[tuple[int, int, bool]]] = {0: [], 1: []}
        for batch in batches(plan, picture_table(), epoch):
            (crop,) = batch.pictures.numpy()
            crops[int(crop[2, 0, 0])].append(place(crop))
        assert [len(found) for found in crops.values()] == [2, 2]
        assert all(first == second for first, second in crops.values())


def test_without_crop_to_pictures_stay_as_they_are() -> None:
    plan = replace(PLAN, crop_to=None)
    (batch,) = batches(plan, picture_table({"plain.jpg": CAPTIONS["plain.jpg"]}), 0)
    assert np.array_equal(batch.pictures[0].numpy(), draw_ruler(0))


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, crop_to=None)], ids=["augmented", "plain"])
def test_dev_pictures_come_in_order_and_unchanged(plan: BatchPlan) -> None:
    rows = list(plan.rows([picture_table()]))
    assert [(row.name, list(row.captions)) for row in rows] == list(CAPTIONS.items())
    assert all(np.array_equal(row.picture, draw_ruler(number)) for number, row in enumerate(rows))
    assert plan.whole_batch(rows).lengths == (6, 4, 4, 3)


NAMES = [f"{number}.jpg" for number in range(30)]
CACHED = replace(
    PLAN,
    picture_format=PictureFormat(shape=(4, 2), dtype="<f2"),
    crop_to=None,
    groups_per_batch=len(NAMES),
    shuffle_buffer=len(NAMES),
)


def view_table(num_views: int, *, null_views: bool = False) -> pa.Table:
    """Return grids of 4 regions whose first feature is the picture's number and whose second is the view's."""
    kind = pa.binary(2 * 4 * 2)
    columns = {"name": NAMES, "captions": [["A dog runs"]] * len(NAMES)}
    for view in range(num_views):
        grids = [np.array([[number, view]] * 4, dtype="<f2").tobytes() for number in range(len(NAMES))]
        absent = null_views and view > 0
        columns["picture" if view == 0 else f"view_{view}"] = (
            pa.nulls(len(NAMES), kind) if absent else pa.array(grids, kind)
        )
    return pa.table(columns)


def views_taken(plan: BatchPlan, table: pa.Table, epoch: int) -> list[int]:
    """Return the view of each picture, in the order of their numbers."""
    grids = torch.cat([batch.pictures for batch in batches(plan, table, epoch)])
    assert (grids.shape, grids.dtype) == ((len(NAMES), 4, 2), torch.float16)
    taken = {int(number): int(view) for number, view in grids[:, 0].tolist()}
    return [taken[number] for number in range(len(NAMES))]


def test_every_view_is_taken_over_the_epochs() -> None:
    taken = np.array([views_taken(CACHED, view_table(3), epoch) for epoch in EPOCHS])
    assert all(set(views) == {0, 1, 2} for views in taken.T)
    # 1200 draws of one view in three: 400 each, give or take five standard deviations of 16.
    assert all(abs(int((taken == view).sum()) - 400) < 80 for view in range(3))
    assert any(len(set(views)) == 3 for views in taken)


def test_the_view_depends_on_seed_epoch_and_name_alone() -> None:
    taken = views_taken(CACHED, view_table(3), 5)
    assert views_taken(replace(CACHED, rank=1, shuffle_buffer=1), view_table(3), 5) == taken
    assert views_taken(CACHED, view_table(3), 6) != taken
    assert views_taken(replace(CACHED, seed=1), view_table(3), 5) != taken


def test_a_table_of_one_view_has_only_that() -> None:
    assert [views_taken(CACHED, view_table(1), epoch) for epoch in range(3)] == [[0] * len(NAMES)] * 3


def test_dev_takes_the_picture_itself_and_reads_no_null_view() -> None:
    for table in (view_table(3), view_table(3, null_views=True)):
        rows = list(CACHED.rows([table]))
        assert [row.name for row in rows] == NAMES
        assert [row.picture[0].tolist() for row in rows] == [[number, 0] for number in range(len(NAMES))]


def test_workers_take_the_same_pictures_in_orders_of_their_own() -> None:
    (first,), (again,), (second,) = (batches(replace(CACHED, rank=rank), view_table(1), 0) for rank in (0, 0, 1))
    orders = [batch.pictures[:, 0, 0].tolist() for batch in (first, again, second)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(len(NAMES)))


def test_a_feed_in_pieces_gives_the_batches_of_one_table() -> None:
    """Arrow tables may come in chunks, and chunks may begin within a buffer."""
    whole = view_table(3)
    pieces = [whole.slice(0, 7), pa.concat_tables([whole.slice(7, 3), whole.slice(10, 0), whole.slice(10)])]
    for epoch in range(3):
        expected = batches(CACHED, whole, epoch)
        found = list(CACHED.train_batches(CACHED.read(pieces), epoch, resident=True))
        assert [batch.pictures.tolist() for batch in found] == [batch.pictures.tolist() for batch in expected]
    assert [row.picture[0, 0] for row in CACHED.rows(pieces)] == list(range(len(NAMES)))


def test_a_resident_share_gives_the_same_in_every_pass_as_a_streamed_one() -> None:
    plan = replace(CACHED, groups_per_batch=4, shuffle_buffer=8)
    held = list(plan.read([view_table(3)]))
    for epoch in (0, 1, 0):
        streamed = batches(plan, view_table(3), epoch, resident=False)
        for one, other in zip(plan.train_batches(held, epoch, resident=True), streamed, strict=True):
            assert torch.equal(one.pictures, other.pictures)
            assert torch.equal(one.ids, other.ids)


def test_several_workers_have_the_batches_of_one_in_another_order() -> None:
    """Of pictures with captions of 1 to 30 words, each a batch, two workers have one of like length in each step."""
    plan = replace(CACHED, groups_per_batch=1)
    words = pa.array([["dog " * (number + 1)] for number in range(len(NAMES))])
    table = view_table(1).set_column(1, "captions", words)
    steps = set()
    for epoch in range(3):
        alone = [batch.lengths[0] for batch in batches(plan, table, epoch)]
        first, second = (
            [batch.lengths[0] for batch in batches(replace(plan, in_step=True, rank=rank), table, epoch)]
            for rank in (0, 1)
        )
        assert sorted(alone) == sorted(first) == sorted(second) == list(range(2, 32))
        assert alone != first != second
        for window in (slice(0, 16), slice(16, 30)):
            assert np.argsort(first[window]).tolist() == np.argsort(second[window]).tolist()
        steps.add(tuple(np.argsort(first[:16]).tolist()))
    assert len(steps) == 3


def test_only_streamed_pictures_are_copied_while_they_wait() -> None:
    (part,) = CACHED.read([view_table(1)])
    for resident in (True, False):
        pictures = list(CACHED._pictures(part, 0, resident))
        assert all(np.shares_memory(picture, part.views[0]) is resident for picture in pictures)


def test_hashes_are_the_same_everywhere() -> None:
    # BLAKE2b with a digest of 8 bytes, and the second output of splitmix64 seeded with 0 (its state is then twice
    # the golden gamma).
    assert [hex(key) for key in hash_names(["", "a.jpg"]).tolist()] == ["0xb4b2797457a0a6e4", "0x89a7126e02f047fe"]
    state = np.array([0x3C6EF372FE94F82A], dtype=np.uint64)
    assert mix(state).tolist() == [0x6E789E6AA1B965F4]

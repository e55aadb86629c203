import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caption_ray.data.synthetic import (
    COLOURS,
    OPPOSITES,
    SHAPES,
    Figure,
    Scene,
    paint,
    write_synthetic_flickr8k,
)
from caption_ray.errors import UsageError


def spot(picture: Image.Image, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that have a colour, but for its variation and the grain."""
    off = np.abs(np.asarray(picture).astype(int) - COLOURS[colour]).max(axis=2)
    return np.nonzero(off <= 26)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "captions.txt").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout_is_that_of_the_kaggle_download(tmp_path: Path) -> None:
    write_synthetic_flickr8k(tmp_path, 30, seed=5)
    names = [f"synthetic_{number:05d}.jpg" for number in range(30)]
    assert sorted(path.name for path in (tmp_path / "Images").iterdir()) == names
    rows = read_rows(tmp_path)
    assert list(rows[0]) == ["image", "caption"]
    assert [row["image"] for row in rows] == [name for name in names for _ in range(5)]
    lists = {
        split: (tmp_path / f"Flickr_8k.{split}Images.txt").read_text("utf-8").splitlines()
        for split in ("train", "dev", "test")
    }
    assert {split: len(some) for split, some in lists.items()} == {"train": 24, "dev": 3, "test": 3}
    assert sorted(name for some in lists.values() for name in some) == names
    with Image.open(tmp_path / "Images" / names[7]) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (224, 224), "RGB")


def test_five_captions_say_the_same_in_five_ways() -> None:
    scene = Scene(Figure("red", "circle"), "left of", Figure("blue", "bar"))
    assert scene.captions() == [
        "a red circle is left of a blue bar",
        "a blue bar is right of a red circle",
        "there is a red circle left of a blue bar",
        "there is a blue bar right of a red circle",
        "a red circle left of a blue bar",
    ]


def test_pictures_show_what_their_captions_say(tmp_path: Path) -> None:
    write_synthetic_flickr8k(tmp_path, 60, seed=1)
    seen = set()
    for row in read_rows(tmp_path)[::5]:
        one, relation_and_other = row["caption"].removeprefix("a ").split(" is ")
        relation, other = relation_and_other.split(" a ")
        colours = one.split()[0], other.split()[0]
        if colours[0] == colours[1]:
            continue
        with Image.open(tmp_path / "Images" / row["image"]) as picture:
            (y, x), (other_y, other_x) = (tuple(axis.mean() for axis in spot(picture, colour)) for colour in colours)
        distance = {
            "left of": other_x - x,
            "right of": x - other_x,
            "above": other_y - y,
            "below": y - other_y,
        }[relation]
        assert 95 <= distance <= 130, row
        seen.add(relation)
    assert seen == set(OPPOSITES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relation", OPPOSITES)
def test_shapes_are_whole_and_look_like_themselves(shape: str, relation: str) -> None:
    scene = Scene(Figure("blue", shape), relation, Figure("red", shape))
    for seed in range(5):
        rows, columns = spot(paint(scene, np.random.default_rng(seed)), "blue")
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        filled = len(rows) / (height * width)
        assert min(rows.min(), columns.min()) > 0
        assert max(rows.max(), columns.max()) < 223
        if shape == "circle":
            assert height == pytest.approx(width, rel=0.06)
            assert filled == pytest.approx(np.pi / 4, rel=0.06)
        elif shape == "bar":
            assert width > 1.8 * height
        else:
            assert height > 1.6 * width
            assert filled == pytest.approx(1 / 2, rel=0.1)


def test_a_seed_gives_the_same_bytes_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small, large, other = tmp_path / "small", tmp_path / "large", tmp_path / "other"
    write_synthetic_flickr8k(small, 20, seed=3)
    write_synthetic_flickr8k(str(large), 25, seed=3)
    write_synthetic_flickr8k(other, 20, seed=4)
    for path in (small / "Images").iterdir():
        assert path.read_bytes() == (large / "Images" / path.name).read_bytes()
        assert path.read_bytes() != (other / "Images" / path.name).read_bytes()
    assert read_rows(small) == read_rows(large)[:100]
    assert read_rows(small) != read_rows(other)


def test_writing_again_leaves_no_picture_of_the_larger_set_before(tmp_path: Path) -> None:
    write_synthetic_flickr8k(tmp_path, 25, seed=0)
    write_synthetic_flickr8k(tmp_path, 20, seed=0)
    assert len(list((tmp_path / "Images").iterdir())) == 20


def test_captions_of_another_picture_do_not_pass_for_right(tmp_path: Path) -> None:
    write_synthetic_flickr8k(tmp_path, 100, seed=0)
    captions = [row["caption"].split() for row in read_rows(tmp_path)]
    references = [captions[start : start + 5] for start in range(0, 500, 5)]
    num_shared = num_all = 0
    for own, foreign in pairwise(references):
        own_4grams = {tuple(words[i : i + 4]) for words in own for i in range(len(words) - 3)}
        for i in range(len(foreign[0]) - 3):
            num_shared += tuple(foreign[0][i : i + 4]) in own_4grams
            num_all += 1
    assert num_shared / num_all < 0.3


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="19 pictures are too few to split: ask for at least 20"):
        write_synthetic_flickr8k(tmp_path, 19, seed=0)
    assert list(tmp_path.iterdir()) == []

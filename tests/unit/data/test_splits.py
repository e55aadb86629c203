import unicodedata
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_ray.data.captions import CaptionRecord
from caption_ray.data.splits import LIST_FILES, SPLITS, assign_splits, read_split_lists
from caption_ray.errors import CaptionFileError


def record(name: str, split: str | None = None) -> CaptionRecord:
    return CaptionRecord(name=name, path=f"Images/{name}", captions=("A dog .",), where="x:1", split=split)


def records(*names: str) -> list[CaptionRecord]:
    return [record(name) for name in names]


def test_lists_keep_line_numbers(tmp_path: Path) -> None:
    (tmp_path / LIST_FILES["train"]).write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\nb.jpg \r\na.jpg\r\n\r\n")
    (tmp_path / LIST_FILES["test"]).write_bytes(b"")
    assert read_split_lists(str(tmp_path)) == {"train": {"a.jpg": 1, "b.jpg": 3}, "test": {}}


def test_no_lists(tmp_path: Path) -> None:
    assert read_split_lists(str(tmp_path)) == {}


def test_a_name_in_two_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / LIST_FILES["train"]).write_text("a.jpg\nb.jpg\n")
    (tmp_path / LIST_FILES["dev"]).write_text("c.jpg\n\nb.jpg\n")
    message = r"Flickr_8k\.devImages\.txt:3: b\.jpg is in Flickr_8k\.trainImages\.txt:2 too"
    with pytest.raises(CaptionFileError, match=message):
        read_split_lists(str(tmp_path))


def test_a_list_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / LIST_FILES["dev"]).write_bytes(b"a.jpg\n\xff.jpg\n")
    with pytest.raises(CaptionFileError, match=r"devImages\.txt:2: not UTF-8"):
        read_split_lists(str(tmp_path))


def test_with_all_lists_the_rest_is_left_out() -> None:
    lists = {"train": {"a.jpg": 1}, "dev": {"b.jpg": 1}, "test": {"c.jpg": 1}}
    splits, problems = assign_splits(records("a.jpg", "b.jpg", "c.jpg", "d.jpg"), lists)
    assert splits == {"a.jpg": "train", "b.jpg": "dev", "c.jpg": "test"}
    assert problems == ()


def test_with_one_list_missing_the_rest_goes_there() -> None:
    lists = {"train": {"a.jpg": 1}, "dev": {"b.jpg": 1}}
    splits, _ = assign_splits(records("a.jpg", "b.jpg", "c.jpg", "d.jpg"), lists)
    assert splits == {"a.jpg": "train", "b.jpg": "dev", "c.jpg": "test", "d.jpg": "test"}


def test_own_splits_count_only_without_lists() -> None:
    own = [record("a.jpg", "test"), record("b.jpg", "dev")]
    assert assign_splits(own, {})[0] == {"a.jpg": "test", "b.jpg": "dev"}
    lists = {"train": {"a.jpg": 1}, "dev": {}, "test": {}}
    assert assign_splits(own, lists)[0] == {"a.jpg": "train"}


def test_a_listed_name_without_record_is_reported() -> None:
    splits, problems = assign_splits(records("a.jpg"), {"train": {"a.jpg": 1, "gone.jpg": 12}})
    assert splits == {"a.jpg": "train"}
    (problem,) = problems
    assert (problem.kind, problem.name) == ("listed_without_captions", "gone.jpg")
    assert problem.where == "Flickr_8k.trainImages.txt:12"


def test_a_list_may_have_names_in_another_unicode_form() -> None:
    forms = [unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFC", "NFD")]
    lists = {"train": {"a.jpg": 1}, "dev": {forms[1]: 1}, "test": {"b.jpg": 1}}
    splits, problems = assign_splits(records("a.jpg", "b.jpg", forms[0]), lists)
    assert splits == {"a.jpg": "train", "b.jpg": "test", forms[0]: "dev"}
    assert problems == ()
    both = {"train": {forms[0]: 1}, "dev": {forms[1]: 1}, "test": {}}
    assert assign_splits(records(*forms), both) == ({forms[0]: "train", forms[1]: "dev"}, ())


def test_hashed_proportions() -> None:
    many = records(*(f"{number}.jpg" for number in range(10_000)))
    counts = Counter(assign_splits(many, {})[0].values())
    # Five standard deviations: 5 * sqrt(10000 * 0.8 * 0.2) = 200, and 5 * sqrt(10000 * 0.1 * 0.9) = 150.
    assert abs(counts["train"] - 8000) <= 200
    assert abs(counts["dev"] - 1000) <= 150
    assert abs(counts["test"] - 1000) <= 150
    # With the dev list there, train and test share 8 : 1; 5 * sqrt(10000 * 8/9 * 1/9) = 157.
    counts = Counter(assign_splits(many, {"dev": {}})[0].values())
    assert set(counts) == {"train", "test"}
    assert abs(counts["test"] - 1111) <= 157


def test_hashed_splits_stay_the_same_from_release_to_release() -> None:
    # `printf 3.jpg | sha256sum | cut -c-16`, read as a number modulo 10, is 2; for the others 8 and 9.
    known = {"3.jpg": "train", "0.jpg": "dev", "5.jpg": "test"}
    assert assign_splits(records(*known), {})[0] == known


names = st.lists(st.text(min_size=1, max_size=8), unique=True)


@settings(max_examples=40)
@given(names, names, st.sets(st.sampled_from(SPLITS)), st.randoms(use_true_random=False))
def test_a_split_depends_on_no_other_picture(
    some: list[str], more: list[str], present: set[str], random: Random
) -> None:
    lists: dict[str, dict[str, int]] = {split: {} for split in present}
    alone, _ = assign_splits(records(*some), lists)
    together = list({*some, *more})
    random.shuffle(together)
    all_splits, _ = assign_splits(records(*together), lists)
    assert {name: split for name, split in all_splits.items() if name in some} == alone
    assert set(all_splits.values()) <= set(SPLITS) - present
    assert len(all_splits) == (0 if len(present) == 3 else len(together))

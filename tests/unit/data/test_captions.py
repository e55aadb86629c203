import json
import unicodedata
from pathlib import Path

import pytest

from caption_ray import storage
from caption_ray.config import CaptionRules
from caption_ray.data.captions import (
    PROBLEM_KINDS,
    CaptionRecord,
    CaptionSource,
    Problem,
    read_source,
    summarise_problems,
)
from caption_ray.errors import CaptionFileError, UsageError


def make_folder(folder: Path, files: dict[str, str]) -> str:
    """Write files; pictures are listed and never opened, so that theirs may be empty."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return str(folder)


def read(folder: Path, captions: str, *pictures: str, rules: CaptionRules | None = None) -> CaptionSource:
    files = {f"Images/{picture}": "" for picture in pictures}
    make_folder(folder, {"captions.txt": f"image,caption\n{captions}", **files})
    return read_source(str(folder), rules or CaptionRules())


def brief(source: CaptionSource) -> list[tuple[str, str, str | None]]:
    return [(problem.kind, problem.where, problem.name) for problem in source.problems]


def test_records_are_sorted_and_keep_the_order_of_captions(tmp_path: Path) -> None:
    source = read(tmp_path, "b.jpg,A dog .\na.jpg,A cat .\nb.jpg,A big dog .\n", "a.jpg", "b.jpg")
    assert source.layout == "kaggle"
    assert source.problems == ()
    assert source.records == (
        CaptionRecord(name="a.jpg", path=f"{tmp_path}/Images/a.jpg", captions=("A cat .",), where="captions.txt:3"),
        CaptionRecord(
            name="b.jpg",
            path=f"{tmp_path}/Images/b.jpg",
            captions=("A dog .", "A big dog ."),
            where="captions.txt:2",
        ),
    )


def test_bad_captions_are_left_out_and_reported_by_line(tmp_path: Path) -> None:
    captions = "a.jpg,A dog .\na.jpg,\na.jpg,Dog .\na.jpg,A  dog .\na.jpg,A dog ?\nb.jpg,A dog .\n,A dog .\n"
    source = read(tmp_path, captions, "a.jpg", "b.jpg")
    assert brief(source) == [
        ("empty_caption", "captions.txt:3", "a.jpg"),
        ("short_caption", "captions.txt:4", "a.jpg"),
        ("duplicate_caption", "captions.txt:5", "a.jpg"),
        ("empty_name", "captions.txt:8", None),
    ]
    assert "'Dog .' has 1 word; a caption needs 2" in source.problems[1].message
    assert "already, at captions.txt:2" in source.problems[2].message
    assert [record.captions for record in source.records] == [("A dog .", "A dog ?"), ("A dog .",)]


def test_rules_can_be_eased(tmp_path: Path) -> None:
    rules = CaptionRules(min_words=1, allow_duplicates=True)
    source = read(tmp_path, "a.jpg,Dog\na.jpg,Dog\na.jpg,!\n", "a.jpg", rules=rules)
    assert source.records[0].captions == ("Dog", "Dog")
    assert brief(source) == [("short_caption", "captions.txt:4", "a.jpg")]


def test_pictures_without_file_or_caption(tmp_path: Path) -> None:
    captions = "gone.jpg,A dog .\ngone.jpg,A cat .\na.jpg,A dog .\nbad.jpg,Dog\nbad.jpg,A, b\n"
    source = read(tmp_path, captions, "a.jpg", "bad.jpg", "new.JPG", "sub/new.png")
    assert brief(source) == [
        ("missing_picture", "captions.txt:2", "gone.jpg"),
        ("short_caption", "captions.txt:5", "bad.jpg"),
        ("column_count", "captions.txt:6", "bad.jpg"),
        ("no_usable_caption", "captions.txt:5", "bad.jpg"),
        ("no_captions", "Images/new.JPG", "new.JPG"),
        ("no_captions", "Images/sub/new.png", "sub/new.png"),
    ]
    assert [record.name for record in source.records] == ["a.jpg"]


def test_picture_of_a_suffix_that_is_not_read_is_not_called_absent(tmp_path: Path) -> None:
    captions = "a.JFIF,A dog .\nb.avif,A dog .\nsub/c.heic,A dog .\nd,A dog .\ne.avif,A dog .\n"
    source = read(tmp_path, captions, "a.JFIF", "b.avif", "sub/c.heic", "d")
    assert brief(source) == [
        ("unread_suffix", "captions.txt:3", "b.avif"),
        ("unread_suffix", "captions.txt:4", "sub/c.heic"),
        ("unread_suffix", "captions.txt:5", "d"),
        ("missing_picture", "captions.txt:6", "e.avif"),
    ]
    assert "'b.avif' is there" in source.problems[0].message
    assert "convert it, or rename it if it is one of .jpg, .jpeg" in source.problems[0].message
    assert [record.name for record in source.records] == ["a.JFIF"]


def test_suffixes_are_named_where_no_picture_has_one(tmp_path: Path) -> None:
    with pytest.raises(CaptionFileError, match=r"found no pictures; .* one of \.jpg, \.jpeg, .*\.tiff"):
        read(tmp_path, "a.heic,A dog .\n", "a.heic")


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("written", "file"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_name_finds_the_picture_whose_name_has_another_unicode_form(tmp_path: Path, written: str, file: str) -> None:
    source = read(tmp_path, f"{written},A dog .\n{file},A dog .\n{file},A cat .\n", file)
    assert brief(source) == [("duplicate_caption", "captions.txt:3", written)]
    (record,) = source.records
    assert (record.name, record.path) == (written, f"{tmp_path}/Images/{file}")
    assert record.captions == ("A dog .", "A cat .")


def test_pictures_whose_names_differ_in_unicode_form_alone_are_two(tmp_path: Path) -> None:
    source = read(tmp_path, f"{COMPOSED},A dog .\n{DECOMPOSED},A cat .\n", COMPOSED, DECOMPOSED)
    assert source.problems == ()
    assert {Path(record.path).name: record.captions for record in source.records} == {
        COMPOSED: ("A dog .",),
        DECOMPOSED: ("A cat .",),
    }


def test_picture_whose_captions_have_another_unicode_form_and_cannot_be_used(tmp_path: Path) -> None:
    source = read(tmp_path, f"{COMPOSED},Dog\na.jpg,A dog .\n", DECOMPOSED, "a.jpg")
    assert brief(source) == [
        ("short_caption", "captions.txt:2", COMPOSED),
        ("no_usable_caption", "captions.txt:2", COMPOSED),
    ]


def test_a_picture_whose_only_line_is_unreadable_counts_as_named(tmp_path: Path) -> None:
    source = read(tmp_path, 'a.jpg,A dog .\nb.jpg,"A cat\n', "a.jpg", "b.jpg")
    assert brief(source) == [
        ("unterminated_quote", "captions.txt:3", "b.jpg"),
        ("no_usable_caption", "captions.txt:3", "b.jpg"),
    ]


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "sub/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "\\x.jpg"])
def test_names_that_escape_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jpg").touch()
    source = read(tmp_path, f"a.jpg,A dog .\n{name},A dog .\n", "a.jpg")
    assert brief(source) == [("unsafe_name", "captions.txt:3", name)]


def test_other_files_are_no_problem(tmp_path: Path) -> None:
    others = ("README", ".DS_Store", "Thumbs.db", "._a.jpg", "sub/notes.txt")
    source = read(tmp_path, "a.jpg,A dog .\n", "a.jpg", *others)
    assert source.problems == ()


@pytest.mark.parametrize("pictures", ["Images/", "Flicker8k_Dataset/", "Flickr8k_Dataset/", ""])
def test_picture_folders(tmp_path: Path, pictures: str) -> None:
    files = {"captions.txt": "image,caption\na.jpg,A dog .\n", f"{pictures}a.jpg": "", f"{pictures}b.jpg": ""}
    source = read_source(make_folder(tmp_path, files), CaptionRules())
    assert source.records[0].path == f"{tmp_path}/{pictures}a.jpg"
    assert brief(source) == [("no_captions", f"{pictures}b.jpg", "b.jpg")]


KAGGLE = {"captions.txt": "image,caption\na.jpg,From Kaggle .\n"}
ORIGINAL = {"Flickr8k.token.txt": "a.jpg#0\tFrom the original .\n"}
KARPATHY = {
    "dataset_flickr8k.json": json.dumps(
        {"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "From Karpathy ."}]}]}
    )
}


@pytest.mark.parametrize(
    ("files", "layout", "caption", "where", "split"),
    [
        (KAGGLE | ORIGINAL | KARPATHY, "kaggle", "From Kaggle .", "captions.txt:2", None),
        (ORIGINAL | KARPATHY, "original", "From the original .", "Flickr8k.token.txt:1", None),
        (KARPATHY, "karpathy", "From Karpathy .", "dataset_flickr8k.json: images[0]", "dev"),
    ],
)
def test_layouts_in_order_of_preference(
    tmp_path: Path, files: dict[str, str], layout: str, caption: str, where: str, split: str | None
) -> None:
    source = read_source(make_folder(tmp_path, {"Images/a.jpg": "", **files}), CaptionRules())
    assert source.layout == layout
    path = f"{tmp_path}/Images/a.jpg"
    assert source.records == (CaptionRecord(name="a.jpg", path=path, captions=(caption,), where=where, split=split),)


@pytest.mark.parametrize("kind", ["path", "uri"])
def test_pictures_of_any_name_are_found_by_path_and_by_uri(tmp_path: Path, kind: str) -> None:
    names = ["100%25.jpg", "a b.jpg", "a#1.jpg", "é.jpg"]
    captions = "".join(f"{name},A dog .\n" for name in names)
    folder = make_folder(tmp_path, {"captions.txt": f"image,caption\n{captions}", **{f"Images/{n}": n for n in names}})
    source = read_source(folder if kind == "path" else tmp_path.as_uri(), CaptionRules())
    assert source.problems == ()
    assert {record.name: storage.read_text(record.path) for record in source.records} == {name: name for name in names}


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: no such folder"):
        read_source(str(tmp_path / "absent"), CaptionRules())
    with pytest.raises(CaptionFileError, match=r"captions\.txt, Flickr8k\.token\.txt, dataset_flickr8k\.json"):
        read_source(str(tmp_path), CaptionRules())
    make_folder(tmp_path, KAGGLE)
    with pytest.raises(CaptionFileError, match="found no pictures"):
        read_source(str(tmp_path), CaptionRules())
    with pytest.raises(UsageError, match="not a folder"):
        read_source(str(tmp_path / "captions.txt"), CaptionRules())


def test_a_file_of_another_format_is_named_in_full(tmp_path: Path) -> None:
    make_folder(tmp_path, {"Images/a.jpg": "", "captions.txt": "a.jpg,A dog .\n"})
    with pytest.raises(CaptionFileError) as caught:
        read_source(str(tmp_path), CaptionRules())
    assert str(caught.value).startswith(f"{tmp_path}/captions.txt:1: expected the header 'image,caption'")


@pytest.mark.parametrize("file", ["captions.txt", "Flickr8k.token.txt", "dataset_flickr8k.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; expected captions"),
        (b"\xef\xbb\xbf\r\n", "empty; expected captions"),
        ("\ufeffimage,caption\na.jpg,A dog .\n".encode("utf-16-le"), "UTF-16.* save the file as UTF-8"),
        ("\ufeffimage,caption\na.jpg,A dog .\n".encode("utf-16-be"), "UTF-16.* save the file as UTF-8"),
    ],
)
def test_caption_file_without_text_that_is_read(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    make_folder(tmp_path, {"Images/a.jpg": ""})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CaptionFileError, match=rf"/{file}: {message}"):
        read_source(str(tmp_path), CaptionRules())


def test_summary_counts_kinds_and_shows_the_first() -> None:
    problems = [Problem(kind="empty_caption", where=f"captions.txt:{line}", message="is empty") for line in (2, 5, 9)]
    problems.append(Problem(kind="no_captions", where="Images/x.jpg", message="has none", name="x.jpg"))
    assert summarise_problems(problems, limit=2).splitlines() == [
        "4 problems in the input",
        f"       3 empty_caption: {PROBLEM_KINDS['empty_caption']}",
        f"       1 no_captions: {PROBLEM_KINDS['no_captions']}",
        "captions.txt:2: is empty",
        "captions.txt:5: is empty",
        "... and 2 more",
    ]
    assert "more" not in summarise_problems(problems, limit=4)

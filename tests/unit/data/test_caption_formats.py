import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_ray.data.caption_formats import (
    PICTURE_SUFFIXES,
    Problem,
    Row,
    kaggle_rows,
    karpathy_rows,
    original_rows,
)
from caption_ray.data.captions import PROBLEM_KINDS
from caption_ray.errors import CaptionFileError

Parser = Callable[[bytes, str], Iterator[Row | Problem]]


def kaggle(text: str | bytes) -> list[tuple[str, ...]]:
    content = text.encode() if isinstance(text, str) else text
    return brief(kaggle_rows(b"image,caption\n" + content, "folder/captions.txt"))


def original(text: str | bytes) -> list[tuple[str, ...]]:
    return brief(original_rows(text.encode() if isinstance(text, str) else text, "folder/tokens"))


def karpathy(*images: Any) -> list[tuple[str, ...]]:
    return brief(karpathy_rows(json.dumps({"images": images}).encode(), "folder/d.json"))


def brief(entries: Iterator[Row | Problem]) -> list[tuple[str, ...]]:
    """Rows as (line, name, caption), problems as (line, kind)."""
    result: list[tuple[str, ...]] = []
    for entry in entries:
        where = entry.where.split(":", 1)[1].strip()
        result.append((where, entry.name, entry.caption) if isinstance(entry, Row) else (where, entry.kind))
    return result


def test_kaggle_quoting() -> None:
    text = 'a.jpg,A dog\na.jpg,"A dog, a cat"\na.jpg,"A ""big"" dog"\na.jpg,A "big" dog\n"b c.jpg", A cat \n'
    assert kaggle(text) == [
        ("2", "a.jpg", "A dog"),
        ("3", "a.jpg", "A dog, a cat"),
        ("4", "a.jpg", 'A "big" dog'),
        ("5", "a.jpg", 'A "big" dog'),
        ("6", "b c.jpg", "A cat"),
    ]


def test_kaggle_newline_in_quotes_counts_lines_from_the_first() -> None:
    text = 'a.jpg,"A dog\nand, at last,\na cat"\nb.jpg,A cat\n'
    assert kaggle(text) == [("2", "a.jpg", "A dog\nand, at last,\na cat"), ("5", "b.jpg", "A cat")]


def test_kaggle_byte_order_mark_crlf_and_blank_lines() -> None:
    content = b'\xef\xbb\xbf"Image" , "Caption"\r\na.jpg,"A dog\r\nruns"\r\n\r\nb.jpg,A cat\r\n\r\n  \r\n'
    assert brief(kaggle_rows(content, "captions.txt")) == [
        ("2", "a.jpg", "A dog\nruns"),
        ("5", "b.jpg", "A cat"),
    ]


@pytest.mark.parametrize(
    ("content", "line"), [(b"", 1), (b"\n\na.jpg,A dog\n", 3), (b"image|caption\n", 1), (b"\xff\xfei\x00", 1)]
)
def test_kaggle_without_header(content: bytes, line: int) -> None:
    with pytest.raises(CaptionFileError, match=rf"^folder/captions\.txt:{line}: expected the header"):
        list(kaggle_rows(content, "folder/captions.txt"))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_kaggle_columns_that_are_not_separated_by_commas(separator: str) -> None:
    content = f'\ufeff"Image"{separator}caption\r\na.jpg{separator}A dog\r\n'.encode()
    with pytest.raises(CaptionFileError, match=r"captions\.txt:1: expected .*separate columns by commas"):
        list(kaggle_rows(content, "captions.txt"))


def test_kaggle_wrong_number_of_columns() -> None:
    text = "a.jpg,A dog, a cat\na.jpg\na.jpg,\n"
    assert kaggle(text) == [("2", "column_count"), ("3", "column_count"), ("4", "a.jpg", "")]
    entries = kaggle_rows(b"image,caption\na.jpg,A dog, a cat\n", "captions.txt")
    assert "expected 2 columns, 'image,caption', found 3" in next(iter(entries)).message  # type: ignore[union-attr]


def test_kaggle_bytes_that_are_not_utf8_are_reported_by_their_own_line() -> None:
    content = b'a.jpg,A caf\xe9 table\na.jpg,A caf\xc3\xa9 table\nb.jpg,"A dog\nat a caf\xe9"\nb.jpg,A dog\n'
    assert kaggle(content) == [
        ("2", "not_utf8"),
        ("3", "a.jpg", "A caf\u00e9 table"),
        ("5", "not_utf8"),
        ("6", "b.jpg", "A dog"),
    ]


def test_kaggle_space_before_a_quote_is_no_part_of_the_caption() -> None:
    assert kaggle('a.jpg, "A dog, running ."\n') == [("2", "a.jpg", "A dog, running .")]


def test_kaggle_unterminated_quote_swallows_no_other_row() -> None:
    text = 'a.jpg,"A dog\nb.jpg,A cat\nc.jpg,"A bird\nsings\nd.PNG,"A cow, eating"\ne.jpg,"A hen\n'
    assert kaggle(text) == [
        ("2", "unterminated_quote"),
        ("3", "b.jpg", "A cat"),
        ("4", "unterminated_quote"),
        ("6", "d.PNG", "A cow, eating"),
        ("7", "unterminated_quote"),
    ]


def test_kaggle_names_may_hold_commas_and_quotes() -> None:
    text = '"a,c.jpg","A dog\n"a ""d"".jpg",A cat\n"a,e.jpg",A,cow\n'
    assert kaggle(text) == [("2", "unterminated_quote"), ("3", 'a "d".jpg', "A cat"), ("4", "column_count")]
    entries = list(kaggle_rows(f"image,caption\n{text}".encode(), "captions.txt"))
    assert [entry.name for entry in entries] == ["a,c.jpg", 'a "d".jpg', "a,e.jpg"]


def test_kaggle_row_that_is_not_csv() -> None:
    assert kaggle("a.jpg,A\rdog\nb.jpg,A cat\n") == [("2", "malformed_row"), ("3", "b.jpg", "A cat")]
    assert kaggle(f"a.jpg,{'x' * 200_000}\nb.jpg,A cat\n") == [
        ("2", "malformed_row"),
        ("3", "b.jpg", "A cat"),
    ]


plain_text = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


def names_no_picture(caption: str) -> bool:
    return not any(suffix in caption.lower() for suffix in PICTURE_SUFFIXES)


@settings(deadline=None)
@given(st.lists(plain_text.map(str.strip).filter(names_no_picture)))
def test_kaggle_reads_what_csv_writes(captions: list[str]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "caption"])
    expected = []
    for index, caption in enumerate(captions):
        expected.append((str(file.getvalue().count("\n") + 1), f"{index}.jpg", caption))
        writer.writerow([f"{index}.jpg", caption])
    assert brief(kaggle_rows(file.getvalue().encode(), "captions.txt")) == expected


def test_original_layout() -> None:
    content = b"\xef\xbb\xbfa.jpg#0\tA dog , running .\r\na.jpg#1\t A cat \r\n\r\nb#c.jpg#0\t\r\n"
    assert original(content) == [
        ("1", "a.jpg", "A dog , running ."),
        ("2", "a.jpg", "A cat"),
        ("4", "b#c.jpg", ""),
    ]


def test_original_bad_lines() -> None:
    content = b"a.jpg#0 A dog\na.jpg\tA dog\n#0\tA dog\na.jpg#1\tA\tdog\na.jpg#2\tA\xff dog\na.jpg#x\tA dog\n"
    assert original(content) == [
        ("1", "column_count"),
        ("2", "malformed_key"),
        ("3", "malformed_key"),
        ("4", "column_count"),
        ("5", "not_utf8"),
        ("6", "malformed_key"),
    ]


def test_original_key_used_twice() -> None:
    assert original("a.jpg#0\tA dog\na.jpg#1\tA cat\na.jpg#0\tA cow\n")[2] == ("3", "duplicate_key")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n\t", exclude_categories=["Cs"])).map(str.strip)))
def test_original_reads_any_caption(captions: list[str]) -> None:
    text = "".join(f"a.jpg#{index}\t{caption}\n" for index, caption in enumerate(captions))
    assert original(text) == [(str(index), "a.jpg", caption) for index, caption in enumerate(captions, 1)]


def test_karpathy_layout_and_splits() -> None:
    images = [
        {
            "filename": f"{split}.jpg",
            "split": split,
            "imgid": 7,
            "sentences": [{"raw": " A dog ", "tokens": []}],
        }
        for split in ("train", "restval", "val", "test")
    ]
    rows = list(karpathy_rows(b"\xef\xbb\xbf" + json.dumps({"images": images}).encode(), "folder/d.json"))
    assert rows[2] == Row(name="val.jpg", caption="A dog", where="d.json: images[2]", split="dev")
    assert [row.split for row in rows if isinstance(row, Row)] == ["train", "train", "dev", "test"]


def test_karpathy_bad_entries() -> None:
    good = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog"}, {"tokens": []}, 7]}
    assert karpathy(
        good,
        {"filename": "b.jpg", "split": "train"},
        "c.jpg",
        {"filename": "d.jpg", "split": "extra", "sentences": []},
        good,
    ) == [
        ("images[0]", "a.jpg", "A dog"),
        ("images[0]", "malformed_entry"),
        ("images[0]", "malformed_entry"),
        ("images[1]", "malformed_entry"),
        ("images[2]", "malformed_entry"),
        ("images[3]", "unknown_split"),
        ("images[4]", "duplicate_key"),
    ]


def test_karpathy_bytes_that_are_not_utf8_cost_one_caption() -> None:
    content = (
        b'{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A caf\xe9"}, {"raw": "A dog"}]}]}'
    )
    assert brief(karpathy_rows(content, "d.json")) == [
        ("images[0]", "not_utf8"),
        ("images[0]", "a.jpg", "A dog"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n}', r"^folder/d\.json:2: not JSON"),
        (b"[]", r"^folder/d\.json: expected an object with a list 'images'"),
        (b'{"images": {}}', r"^folder/d\.json: expected an object with a list 'images'"),
        (b'{"images": ' + b"[" * 100_000, r"^folder/d\.json: JSON that cannot be read"),
        (b'{"images": [' + b"9" * 5_000 + b"]}", r"^folder/d\.json: JSON that cannot be read .*digits"),
    ],
)
def test_karpathy_wrong_structure(content: bytes, message: str) -> None:
    with pytest.raises(CaptionFileError, match=message):
        list(karpathy_rows(content, "folder/d.json"))


fragments = st.sampled_from(
    [b"a.jpg", b"#0", b"\t", b",", b'"', b"\n", b"\r", b"\xff", b"\0", b" ", b"dog", b"\xed\xa0\x80"]
)


@pytest.mark.parametrize(("parser", "header"), [(kaggle_rows, b"image,caption\n"), (original_rows, b"")])
@settings(deadline=None)
@given(parts=st.lists(fragments))
def test_any_bytes_are_read_or_reported(parser: Parser, header: bytes, parts: list[bytes]) -> None:
    content = header + b"".join(parts)
    lines = content.split(b"\n")
    numbers = []
    for entry in parser(content, "file"):
        numbers.append(int(entry.where.removeprefix("file:")))
        (entry.caption if isinstance(entry, Row) else entry.message).encode("utf-8")
        (entry.name or "").encode("utf-8")
        assert isinstance(entry, Row) or entry.kind in PROBLEM_KINDS
    assert numbers == sorted(set(numbers))
    # A line that begins with a picture's name stands for itself, whatever is wrong above it.
    rows = {number for number, line in enumerate(lines, start=1) if line.startswith(b"a.jpg,")}
    assert rows <= set(numbers)


json_text = st.sampled_from(["a.jpg", "train", "val", "A dog", "", "\0", "\ud800", "\udcff"])
json_values = st.recursive(
    st.none() | st.integers() | st.floats() | json_text,
    lambda inner: st.lists(inner) | st.dictionaries(json_text, inner),
    max_leaves=5,
)
sentences = st.lists(st.fixed_dictionaries({}, optional={"raw": json_text | json_values}) | json_values)
images = st.fixed_dictionaries(
    {}, optional={"filename": json_text | json_values, "split": json_text | json_values, "sentences": sentences}
)
documents = st.fixed_dictionaries({"images": st.lists(images | json_values)}) | json_values
json_fragments = st.sampled_from(
    [*rb'{ } [ ] " : , "images" 1e999 - \u'.split(), b" ", b"\xff", b"\0", b"\xef\xbb\xbf"]
)


@settings(deadline=None)
@given(
    content=documents.map(lambda document: json.dumps(document).encode())
    | documents.map(lambda document: json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.lists(json_fragments).map(b"".join)
    | st.binary()
)
def test_any_json_is_read_or_reported_or_refused(content: bytes) -> None:
    try:
        entries = list(karpathy_rows(content, "file"))
    except CaptionFileError as error:
        str(error).encode("utf-8")
        return
    for entry in entries:
        assert entry.where.startswith("file: images[")
        (entry.caption if isinstance(entry, Row) else entry.message).encode("utf-8")
        (entry.name or "").encode("utf-8")
        assert isinstance(entry, Row) or entry.kind in PROBLEM_KINDS

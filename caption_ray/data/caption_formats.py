"""The three file formats of captions, each read row by row: what can be used, and what cannot, by line.

A parser takes a file's content and its location, and yields a `Row` for each caption and a `Problem` for
each thing that is not one, in the order of the file. It raises CaptionFileError where the whole file is of
another format.
"""

import codecs
import csv
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from caption_ray.errors import CaptionFileError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")

# His "val" is the official dev list; "restval" is what he adds to training.
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}

_SUFFIX_PATTERN = "|".join(suffix[1:] for suffix in PICTURE_SUFFIXES)
_LOOKS_LIKE_A_ROW = re.compile(
    rf'(?P<name>"(?:[^"]|"")+\.(?:{_SUFFIX_PATTERN})"|"?[^",]+\.(?:{_SUFFIX_PATTERN})"?)\s*,', re.IGNORECASE
)
_KEY = re.compile(r"(?P<name>.+)#\d+")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A piece of input that cannot be used."""

    kind: str
    """One of `captions.PROBLEM_KINDS`, or of a later step's own."""
    where: str
    """File and line, `captions.txt:17`, or the picture, `Images/x.jpg`."""
    message: str
    name: str | None = None
    """The picture concerned, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One caption of one picture as the file has it, unchecked."""

    name: str
    caption: str
    where: str
    split: str | None = None


def decode_lines(content: bytes) -> list[str]:
    """Return the lines of a text file without BOM and line ends (LF or CRLF).

    Bytes that are not UTF-8 become lone surrogates, which `is_text` finds: a bad line spoils no other.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    return [line.removesuffix("\r") for line in text.split("\n")]


def is_text(text: str) -> bool:
    """Tell whether a decoded string holds characters only, and no byte that was not UTF-8."""
    return _SURROGATE.search(text) is None


def kaggle_rows(content: bytes, path: str) -> Iterator[Row | Problem]:
    """Read CSV under the header `image,caption`; quoted captions may hold commas, newlines and `""`.

    A row's line is its first. A quoted caption that would run on into a line that begins another row is
    taken as an unterminated quote, and reading goes on at that line.
    """
    lines = decode_lines(content)
    start = next((index for index, line in enumerate(lines) if line.strip()), 0)
    header = [column.strip(' "').lower() for column in re.split("[,;\t]", lines[start])]
    if header != ["image", "caption"] or "," not in lines[start]:
        raise CaptionFileError(
            f"{path}:{start + 1}: expected the header 'image,caption', found {lines[start][:80]!r}; "
            + (
                "separate columns by commas, with quotes around a caption that holds some"
                if header == ["image", "caption"]
                else "is this Flickr8k's captions.txt? If only the header is missing, add it as the first line"
            )
        )
    file = posixpath.basename(path)
    start += 1
    while start < len(lines):
        if lines[start].strip():
            entry, start = _kaggle_row(lines, start, file)
            yield entry
        else:
            start += 1


def _kaggle_row(lines: list[str], start: int, file: str) -> tuple[Row | Problem, int]:
    """Read the row that begins at line index `start`; returns it and the index of the line after it."""
    end = start + 1
    unterminated = False

    def supply() -> Iterator[str]:
        nonlocal end, unterminated
        yield lines[start] + "\n"
        # The reader asks for more only inside quotes, so running dry means that they were never closed.
        while end < len(lines) and not _LOOKS_LIKE_A_ROW.match(lines[end]):
            end += 1
            yield lines[end - 1] + "\n"
        unterminated = True

    where = f"{file}:{start + 1}"
    named = _LOOKS_LIKE_A_ROW.match(lines[start])
    name = _name_or_none((named["name"] if named else lines[start].partition(",")[0]).strip(' "').replace('""', '"'))
    try:
        columns = next(csv.reader(supply(), skipinitialspace=True))
    except csv.Error as error:
        return Problem(kind="malformed_row", where=where, message=f"not CSV ({error})", name=name), end
    for index in range(start, end):
        if not is_text(lines[index]):
            return _not_utf8(f"{file}:{index + 1}", lines[index], name), end
    if unterminated:
        message = "the quote that opens here is never closed; close it, or double quotes inside a caption"
        return Problem(kind="unterminated_quote", where=where, message=message, name=name), end
    if len(columns) != 2:
        message = (
            f"expected 2 columns, 'image,caption', found {len(columns)}; "
            "a caption that holds commas needs quotes around it"
        )
        return Problem(kind="column_count", where=where, message=message, name=name), end
    return Row(name=columns[0].strip(), caption=columns[1].strip(), where=where), end


def original_rows(content: bytes, path: str) -> Iterator[Row | Problem]:
    """Read lines of `name.jpg#0<TAB>caption`; a key that comes again is a problem."""
    file = posixpath.basename(path)
    first_uses: dict[str, int] = {}
    for number, line in enumerate(decode_lines(content), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        columns = line.split("\t")
        key = columns[0].strip()
        match = _KEY.fullmatch(key)
        name = _name_or_none(match["name"].strip()) if match else None
        if not is_text(line):
            yield _not_utf8(where, line, name)
        elif len(columns) != 2:
            message = f"expected 2 columns, 'name.jpg#0<TAB>caption', found {len(columns)}"
            yield Problem(kind="column_count", where=where, message=message, name=name)
        elif name is None:
            message = f"expected a key like 'name.jpg#0', found {key[:80]!r}"
            yield Problem(kind="malformed_key", where=where, message=message)
        elif key in first_uses:
            message = f"the key {key!r} was used in line {first_uses[key]} already; number captions apart"
            yield Problem(kind="duplicate_key", where=where, message=message, name=name)
        else:
            first_uses[key] = number
            yield Row(name=name, caption=columns[1].strip(), where=where)


def karpathy_rows(content: bytes, path: str) -> Iterator[Row | Problem]:
    """Read `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`, which brings its own splits."""
    # A valid file is decoded as by UTF-8; in another, the captions that are text can still be read.
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise CaptionFileError(f"{path}:{error.lineno}: not JSON ({error.msg}); fetch it again") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise CaptionFileError(f"{path}: JSON that cannot be read ({error}); fetch it again") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise CaptionFileError(
            f"{path}: expected an object with a list 'images'; is this Karpathy's dataset_flickr8k.json?"
        )
    first_uses: dict[str, int] = {}
    for index, image in enumerate(images):
        where = f"{posixpath.basename(path)}: images[{index}]"
        match image:
            case {"filename": str(name), "split": str(split), "sentences": list(sentences)}:
                pass
            case _:
                message = "expected an object with 'filename', 'split' and a list 'sentences'"
                yield Problem(kind="malformed_entry", where=where, message=message)
                continue
        if not is_text(name):
            yield _not_utf8(where, name, None)
        elif split not in _KARPATHY_SPLITS:
            message = f"expected a split of {', '.join(_KARPATHY_SPLITS)}, found {split[:80]!r}"
            yield Problem(kind="unknown_split", where=where, message=message, name=name)
        elif name in first_uses:
            message = f"{name} has an entry already, images[{first_uses[name]}]; keep one of them"
            yield Problem(kind="duplicate_key", where=where, message=message, name=name)
        else:
            first_uses[name] = index
            yield from _karpathy_sentences(sentences, name, _KARPATHY_SPLITS[split], where)


def _karpathy_sentences(sentences: list[object], name: str, split: str, where: str) -> Iterator[Row | Problem]:
    for index, sentence in enumerate(sentences):
        match sentence:
            case {"raw": str(caption)} if is_text(caption):
                yield Row(name=name, caption=caption.strip(), where=where, split=split)
            case {"raw": str(caption)}:
                yield _not_utf8(where, caption, name)
            case _:
                message = f"sentences[{index}]: expected an object with the text 'raw'"
                yield Problem(kind="malformed_entry", where=where, message=message, name=name)


def _not_utf8(where: str, text: str, name: str | None) -> Problem:
    message = f"not UTF-8: {text.strip()[:80]!r}; save the file as UTF-8"
    return Problem(kind="not_utf8", where=where, message=message, name=name)


def _name_or_none(name: str) -> str | None:
    """Return a picture's name where a report can hold it, else None."""
    return name if name and is_text(name) else None

"""A folder of pictures and a caption file, in one of three layouts, to one record per picture."""

import codecs
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PureWindowsPath
from typing import Literal

from caption_ray import storage
from caption_ray.config import CaptionRules
from caption_ray.data.caption_formats import (
    PICTURE_SUFFIXES,
    Problem,
    Row,
    kaggle_rows,
    karpathy_rows,
    original_rows,
)
from caption_ray.errors import CaptionFileError, UsageError

__all__ = [
    "PROBLEM_KINDS",
    "CaptionRecord",
    "CaptionSource",
    "Layout",
    "Problem",
    "read_source",
    "summarise_problems",
]

Layout = Literal["kaggle", "original", "karpathy"]

PROBLEM_KINDS = {
    "malformed_row": "a line that is not CSV",
    "unterminated_quote": "a quote that is never closed",
    "column_count": "more or fewer than two columns",
    "not_utf8": "bytes that are not UTF-8",
    "malformed_key": "a key that is not 'name.jpg#0'",
    "duplicate_key": "a key or entry that comes twice",
    "malformed_entry": "a JSON entry without what it must have",
    "unknown_split": "a split that is none of train, restval, val, test",
    "empty_name": "a caption without a picture's name",
    "unsafe_name": "a picture's name that leads out of the picture folder",
    "missing_picture": "a picture that has captions and no file",
    "unread_suffix": "a picture whose file has a suffix that is not read",
    "empty_caption": "a caption without text",
    "short_caption": "a caption with too few words",
    "duplicate_caption": "a caption that its picture already has",
    "no_usable_caption": "a picture whose captions were all left out",
    "no_captions": "a picture without any caption",
    "listed_without_captions": "a picture of a split list that has no captions",
}
"""What reading a source can find wrong, by the `kind` of its Problem."""

# In order of preference: the first that a folder has is read.
_CAPTION_FILES: dict[Layout, str] = {
    "kaggle": "captions.txt",
    "original": "Flickr8k.token.txt",
    "karpathy": "dataset_flickr8k.json",
}
_SUFFIXES = ", ".join(PICTURE_SUFFIXES)
_PARSERS = {"kaggle": kaggle_rows, "original": original_rows, "karpathy": karpathy_rows}
_PICTURE_FOLDERS = (
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)  # the original release's name is "Flicker"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRecord:
    """One picture and its captions, at least one."""

    name: str
    """File name below the picture folder as the caption file writes it, `1000268201_693b08cb0e.jpg`."""
    path: str
    """Location of the picture file."""
    captions: tuple[str, ...]
    """Sentences as written, without surrounding whitespace, in the order of the file."""
    where: str
    """The first line that names the picture, `captions.txt:2`."""
    split: str | None = None
    """The split that the caption file itself gives (Karpathy's does), else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSource:
    """What a folder holds: records sorted by name, and all that was left out, in the order of the file."""

    records: tuple[CaptionRecord, ...]
    problems: tuple[Problem, ...]
    layout: Layout


def read_source(folder: str, rules: CaptionRules) -> CaptionSource:
    """Read the captions below `folder` and check them against `rules` and the pictures that are there.

    The caption file is `captions.txt` (Kaggle), `Flickr8k.token.txt` (the original release) or
    `dataset_flickr8k.json` (Karpathy); pictures lie in `Images/`, `Flicker8k_Dataset/`,
    `Flickr8k_Dataset/` or beside the file. Hidden files and files that are no pictures are passed over.
    Pictures are listed, not opened. A name finds its picture in whichever Unicode form either is written.

    Raises UsageError where the folder is absent, CaptionFileError where it has no caption file, no picture,
    a file name that is not UTF-8, or a caption file that is empty or of another format. All else is a Problem.
    """
    try:
        files = storage.list_files(folder)
    except NotADirectoryError as error:
        raise UsageError(f"{folder}: not a folder; name the one that holds captions and pictures") from error
    except UnicodeDecodeError as error:
        raise CaptionFileError(f"{folder}: the file name {error.object!r} is not UTF-8; rename the file") from error
    if not files and not storage.exists(folder):
        raise UsageError(f"{folder}: no such folder; name the one that holds captions and pictures")
    layout = next((layout for layout, file in _CAPTION_FILES.items() if file in files), None)
    if layout is None:
        raise CaptionFileError(f"{folder}: found no caption file; expected one of {', '.join(_CAPTION_FILES.values())}")
    picture_folder, pictures, others = _find_pictures(files)
    if not pictures:
        raise CaptionFileError(
            f"{folder}: found no pictures; expected them in {', '.join(_PICTURE_FOLDERS)} "
            f"or beside {_CAPTION_FILES[layout]}, as files that end in one of {_SUFFIXES}"
        )
    path = storage.join(folder, _CAPTION_FILES[layout])
    gathering = _Gathering(pictures, others, picture_folder, rules)
    for entry in _PARSERS[layout](_read_captions(path), path):
        gathering.add(entry)
    gathering.add_pictures_left_over()
    records = (
        CaptionRecord(
            name=name,
            path=storage.join(folder, picture_folder, gathering.file_of(name) or name),
            captions=tuple(row.caption for row in rows),
            where=gathering.first_lines[name],
            split=rows[0].split,
        )
        for name, rows in sorted(gathering.rows.items())
    )
    return CaptionSource(records=tuple(records), problems=tuple(gathering.problems), layout=layout)


def summarise_problems(problems: Sequence[Problem], limit: int | None = None) -> str:
    """Return lines for a person: how many of each kind, then place and message of the first `limit`, or of all."""
    counts = Counter(problem.kind for problem in problems)
    lines = [f"{len(problems)} problem{'' if len(problems) == 1 else 's'} in the input"]
    for kind, count in counts.most_common():
        meaning = f": {PROBLEM_KINDS[kind]}" if kind in PROBLEM_KINDS else ""
        lines.append(f"  {count:6d} {kind}{meaning}")
    lines += [f"{problem.where}: {problem.message}" for problem in problems[:limit]]
    if limit is not None and len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n".join(lines)


def _read_captions(path: str) -> bytes:
    """Return what a caption file holds. Raises CaptionFileError where that is nothing, or UTF-16."""
    content = storage.read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CaptionFileError(f"{path}: UTF-16, which is not read; save the file as UTF-8")
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise CaptionFileError(f"{path}: empty; expected captions")
    return content


def _find_pictures(files: Iterable[str]) -> tuple[str, set[str], set[str]]:
    """Return the picture folder, "" for the caption file's own, and below it the pictures and the other files."""
    shown = [file for file in files if not posixpath.basename(file).startswith(".")]
    for folder in _PICTURE_FOLDERS:
        inside = {file[len(folder) + 1 :] for file in shown if file.startswith(f"{folder}/")}
        if pictures := _pictures_among(inside):
            return folder, pictures, inside - pictures
    beside = {file for file in shown if "/" not in file}
    pictures = _pictures_among(beside)
    return "", pictures, beside - pictures


def _pictures_among(files: Iterable[str]) -> set[str]:
    return {file for file in files if file.lower().endswith(PICTURE_SUFFIXES)}


def composed(name: str) -> str:
    """Return a name in the one Unicode form for all: an accent may be part of its letter, or, on a Mac, follow it."""
    return unicodedata.normalize("NFC", name)


class _Gathering:
    """Rows of a caption file, checked one by one and put together by picture."""

    def __init__(self, pictures: set[str], others: set[str], picture_folder: str, rules: CaptionRules) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.problems: list[Problem] = []
        self.first_lines: dict[str, str] = {}
        self._pictures = pictures
        self._others = others
        self._picture_folder = picture_folder
        self._rules = rules
        self._refused: set[str] = set()
        self._names: dict[str, str] = {}  # of pictures, as the caption file writes them first
        self._by_form: dict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            self._by_form[composed(picture)].append(picture)

    def add(self, entry: Row | Problem) -> None:
        """Take the next entry of the file."""
        file = self.file_of(entry.name)
        if file is not None:
            # One name for a picture that the file names in two forms, or it would be two pictures.
            entry = replace(entry, name=self._names.setdefault(file, entry.name or file))
        if isinstance(entry, Problem):
            self.problems.append(entry)
            if entry.name is not None:
                self.first_lines.setdefault(entry.name, entry.where)
            return
        self.first_lines.setdefault(entry.name, entry.where)
        if entry.name in self._refused:
            return  # reported at its first caption; four more lines would say the same
        fault = self._name_fault(entry.name)
        if fault is not None and entry.name:
            self._refused.add(entry.name)
        fault = fault or self._caption_fault(entry)
        if fault is None:
            self.rows.setdefault(entry.name, []).append(entry)
            return
        kind, message = fault
        self.problems.append(Problem(kind=kind, where=entry.where, message=message, name=entry.name or None))

    def add_pictures_left_over(self) -> None:
        """Report the pictures that are in the folder and got no caption; the last step."""
        for file in sorted(self._pictures):
            name = self._names.get(file, file)
            if name in self.rows:
                continue
            if name in self.first_lines:
                message = f"{name}: none of its captions can be used; see its other problems"
                where, kind = self.first_lines[name], "no_usable_caption"
            else:
                message = "the caption file has no caption for this picture"
                where, kind = storage.join(self._picture_folder, file), "no_captions"
            self.problems.append(Problem(kind=kind, where=where, message=message, name=name))

    def file_of(self, name: str | None) -> str | None:
        """Return the picture of that name, or else the only one whose name differs from it in Unicode form alone."""
        if name is None or name in self._pictures:
            return name
        alike = self._by_form.get(composed(name), [])
        return alike[0] if len(alike) == 1 else None

    def _name_fault(self, name: str) -> tuple[str, str] | None:
        if not name:
            return "empty_name", "expected a picture's file name, found nothing"
        # Windows' rules know both slashes and drive letters, so nothing that escapes anywhere gets through.
        parsed = PureWindowsPath(name)
        if parsed.anchor or ".." in parsed.parts:
            return "unsafe_name", f"{name!r} leads out of the picture folder; use plain file names"
        if name in self._others:
            message = f"{name!r} is there, but its suffix is not read; convert it, or rename it if it is"
            return "unread_suffix", f"{message} one of {_SUFFIXES}"
        if self.file_of(name) is None:
            folder = self._picture_folder or "the caption file's folder"
            return "missing_picture", f"{name!r} is not among the pictures of {folder}"
        return None

    def _caption_fault(self, row: Row) -> tuple[str, str] | None:
        if not row.caption:
            return "empty_caption", f"the caption of {row.name} is empty"
        num_words = sum(any(map(str.isalnum, token)) for token in row.caption.split())
        if num_words < self._rules.min_words:
            return (
                "short_caption",
                f"{row.caption[:80]!r} has {num_words} word{'' if num_words == 1 else 's'}; "
                f"a caption needs {self._rules.min_words} (min_words)",
            )
        if not self._rules.allow_duplicates:
            for other in self.rows.get(row.name, []):
                if other.caption.split() == row.caption.split():
                    return (
                        "duplicate_caption",
                        f"{row.name} has the caption {row.caption[:80]!r} already, at {other.where}",
                    )
        return None

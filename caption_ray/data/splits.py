"""Which picture trains, which chooses (dev), which judges (test): every picture in one split at most."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from caption_ray import storage
from caption_ray.data.caption_formats import Problem, decode_lines, is_text
from caption_ray.data.captions import CaptionRecord, composed
from caption_ray.errors import CaptionFileError

SPLITS = ("train", "dev", "test")
LIST_FILES = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}

# Tenths of the pictures, shared out among the splits that no list gives.
_SHARES = {"train": 8, "dev": 1, "test": 1}


def read_split_lists(folder: str) -> dict[str, dict[str, int]]:
    """Return the official lists that lie in `folder`: split -> picture name -> line number, from 1.

    A list that is absent has no key; one that is there but empty has an empty mapping. Raises
    CaptionFileError where a name is in two lists, or a line is not UTF-8.
    """
    lists: dict[str, dict[str, int]] = {}
    for split, file in LIST_FILES.items():
        path = storage.join(folder, file)
        if not storage.exists(path):
            continue
        names: dict[str, int] = {}
        for number, line in enumerate(decode_lines(storage.read_bytes(path)), start=1):
            name = line.strip()
            if not is_text(name):
                raise CaptionFileError(f"{path}:{number}: not UTF-8: {name[:80]!r}; save the file as UTF-8")
            for other, other_names in lists.items():
                if name in other_names:
                    raise CaptionFileError(
                        f"{path}:{number}: {name} is in {LIST_FILES[other]}:{other_names[name]} too; "
                        "a picture belongs to one split, remove it from one list"
                    )
            if name:
                names.setdefault(name, number)
        lists[split] = names
    return lists


def assign_splits(
    records: Iterable[CaptionRecord], lists: Mapping[str, Mapping[str, int]]
) -> tuple[dict[str, str], tuple[Problem, ...]]:
    """Return the split of each picture by name, and the listed names that have no record.

    `lists` is what `read_split_lists` returns. Without any list, a record's own split counts. A listed
    picture gets its list's split, in whichever Unicode form the list has its name. The rest goes, by a hash
    of the name, to the splits without a list, train 8 : dev 1 : test 1 among them; where all three have one,
    the rest is left out of the mapping. So a picture's split depends on its name and the lists, never on the
    other pictures.
    """
    records = list(records)
    listed = {name: split for split, names in lists.items() for name in names}
    as_listed = _as_listed([record.name for record in records], listed)
    missing = [split for split in SPLITS if split not in lists]
    splits: dict[str, str] = {}
    for record in records:
        split = record.split if not lists else listed.get(as_listed[record.name])
        if split is None and missing:
            split = _split_by_hash(record.name, missing)
        if split is not None:
            splits[record.name] = split
    found = set(as_listed.values())
    problems = (
        Problem(
            kind="listed_without_captions",
            where=f"{LIST_FILES[split]}:{number}",
            message=f"{name} is listed for {split} and has no usable captions",
            name=name,
        )
        for split, names in lists.items()
        for name, number in names.items()
        if name not in found
    )
    return splits, tuple(problems)


def _as_listed(names: Sequence[str], listed: Collection[str]) -> dict[str, str]:
    """Return how a list writes each name: the same, or else what alone differs from it in Unicode form only."""
    by_form: dict[str, list[str]] = defaultdict(list)
    for name in listed:
        by_form[composed(name)].append(name)
    found = {}
    for name in names:
        alike = [] if name in listed else by_form.get(composed(name), [])
        found[name] = alike[0] if len(alike) == 1 else name
    return found


def _split_by_hash(name: str, candidates: list[str]) -> str:
    """Return one of the candidates, each with a probability in proportion to its share."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    place = int.from_bytes(digest[:8], "big") % sum(_SHARES[split] for split in candidates)
    for split in candidates:
        if place < _SHARES[split]:
            break
        place -= _SHARES[split]
    return split

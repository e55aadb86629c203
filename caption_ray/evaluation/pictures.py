"""The pictures that an evaluation scores: a split of a prepared data set, or of a folder as it is."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import ray.data

from caption_ray import storage
from caption_ray.config import CaptionRules
from caption_ray.data.captions import read_source, summarise_problems
from caption_ray.data.prepare import open_pictures
from caption_ray.data.shards import load_manifest
from caption_ray.data.splits import SPLITS, assign_splits, read_split_lists
from caption_ray.data.tables import read_shards
from caption_ray.errors import DatasetError, UsageError

logger = logging.getLogger(__name__)

ALL = "all"

# References are kept as people wrote them: leaving some out would change the scores.
_REFERENCE_RULES = CaptionRules(min_words=1, allow_duplicates=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPictures:
    """Pictures with their true captions. `dataset` makes a Ray dataset with name, image, captions, when called."""

    where: str
    split: str
    count: int
    dataset: Callable[[], ray.data.Dataset]


def prepared_pictures(data: str, split: str) -> ScoredPictures:
    """Return a split (or 'all') of a prepared data set. Raises UsageError where it is empty."""
    data = storage.absolute(data)
    manifest = load_manifest(data)
    names = _split_names(split)
    files = [file for name in names for file in manifest.splits[name].files]
    if not files:
        raise UsageError(f"{data}: no picture in --split {split}; it has {_counts(manifest.splits)}")
    paths = [storage.join(data, file.name) for file in files]

    count = sum(manifest.splits[name].num_pictures for name in names)
    return ScoredPictures(
        where=data, split=split, count=count, dataset=lambda: read_shards(paths, ["name", "image", "captions"])
    )


def source_pictures(source: str, split: str) -> ScoredPictures:
    """Return a split (or 'all') of a folder in any layout that jobs/prepare_data.py reads.

    Captions are all kept, odd ones too. What cannot be read of the caption files is logged; pictures that cannot be
    opened show up when the dataset is read. Raises UsageError where the split is empty, DatasetError where no picture
    of the folder has a caption that can be used.
    """
    source = storage.absolute(source)
    names = _split_names(split)
    found = read_source(source, _REFERENCE_RULES)
    if not found.records:
        raise DatasetError(f"{source}: no picture has captions; {summarise_problems(found.problems, limit=5)}")
    splits, unmatched = assign_splits(found.records, read_split_lists(source))
    records = [record for record in found.records if split == ALL or splits.get(record.name) in names]
    if not records:
        raise UsageError(
            f"{source}: no picture in --split {split}, of {len(found.records):,} with captions; name them in "
            f"Flickr_8k.{split}Images.txt beside the captions, or use --split all"
        )
    if problems := [*found.problems, *unmatched]:
        logger.warning("%s\nThese are not scored.", summarise_problems(problems, limit=5))
    everywhere = {record.name: split for record in records}
    return ScoredPictures(
        where=source, split=split, count=len(records), dataset=lambda: open_pictures(records, everywhere)
    )


def _split_names(split: str) -> tuple[str, ...]:
    if split == ALL:
        return SPLITS
    if split not in SPLITS:
        raise UsageError(f"--split {split}: not one of {', '.join((*SPLITS, ALL))}")
    return (split,)


def _counts(splits: object) -> str:
    assert isinstance(splits, dict)
    return ", ".join(f"{part.num_pictures:,} in {name}" for name, part in splits.items())

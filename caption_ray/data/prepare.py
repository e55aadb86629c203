"""From a folder of captioned pictures to a data set; Ray Data opens every picture once, in parallel."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from caption_ray import storage
from caption_ray.cluster import connect
from caption_ray.config import CaptionRules, VocabularyConfig
from caption_ray.data.captions import CaptionRecord, Problem, read_source, summarise_problems
from caption_ray.data.images import inspect_picture
from caption_ray.data.output_folder import output_folder
from caption_ray.data.shards import (
    MANIFEST_NAME,
    PICTURE_SCHEMA,
    VOCABULARY_NAME,
    DatasetManifest,
    ShardFile,
    ShardWriter,
    SplitFiles,
    digest_files,
)
from caption_ray.data.splits import SPLITS, assign_splits, read_split_lists
from caption_ray.errors import BadInputError, DatasetError, PictureError
from caption_ray.progress import Progress
from caption_ray.special_ids import UNKNOWN_ID
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import SPECIAL_WORDS, Vocabulary, build_vocabulary

logger = logging.getLogger(__name__)

REPORT_NAME = "report.json"

PICTURES_PER_TASK = 32

_OUR_FILES = re.compile(
    r"(train|dev|test)-\d{5,}\.parquet|captions(_(train|dev|test))?\.json|(dataset|report|vocabulary)\.json"
)


def prepare_dataset(
    source: str,
    output: str,
    *,
    skip_bad: bool,
    overwrite: bool,
    rules: CaptionRules,
    vocabulary: VocabularyConfig,
) -> DatasetManifest:
    """Write pictures and captions of `source` to `output`: Parquet shards, vocabulary, captions, report.

    The same source gives the same files, whatever the number of CPUs. Memory does not grow with the pictures.

    Raises BadInputError, after all pictures were opened, where any caption or picture cannot be used;
    with `skip_bad` these are listed in report.json and left out. Raises DatasetError where no picture is
    left to train on, UsageError and CaptionFileError as `output_folder` and `read_source` do. Then the
    output is as it was.
    """
    source, output = storage.absolute(source), storage.output_at("--output", output)
    found = read_source(source, rules)
    splits, split_problems = assign_splits(found.records, read_split_lists(source))
    problems = [*found.problems, *split_problems]
    records = [record for record in found.records if record.name in splits]
    unlisted = [record.name for record in found.records if record.name not in splits]
    if unlisted:
        logger.warning(
            "%d picture(s), such as %s, are in none of the three lists and are left out; name them in one to have them",
            len(unlisted),
            unlisted[0],
        )
    with (
        output_folder(output, marker=MANIFEST_NAME, our_files=_OUR_FILES, overwrite=overwrite) as folder,
        connect(),
    ):
        files, bad_pictures = _write_pictures(
            folder, source, records, splits, skip_bad=skip_bad, doomed=bool(problems) and not skip_bad
        )
        problems += bad_pictures
        if problems and not skip_bad:
            raise BadInputError(f"{summarise_problems(problems)}\nNothing was written; --skip-bad leaves these out.")
        bad_names = {problem.name for problem in bad_pictures}
        captions = {
            split: {
                record.name: record.captions
                for record in records
                if splits[record.name] == split and record.name not in bad_names
            }
            for split in SPLITS
        }
        if not captions["train"]:
            raise DatasetError(
                f"{source}: no picture is left to train on, of {len(found.records):,} with captions: "
                "check the split lists, and the problems that were skipped"
            )
        if not captions["dev"]:
            logger.warning(
                "no picture is in the dev split, and training needs some: name them in Flickr_8k.devImages.txt beside "
                "the captions"
            )
        words = build_vocabulary(_tokenised(captions["train"]), vocabulary.min_count)
        if len(words) == len(SPECIAL_WORDS):
            raise DatasetError(
                f"{source}: no word of the training captions is there {vocabulary.min_count} times, so that the "
                "vocabulary would be empty; --min-count 1 takes every word"
            )
        storage.write_text(storage.join(folder, VOCABULARY_NAME), words.to_json())
        _write_captions(folder, captions)
        report = {
            "source": source,
            "layout": found.layout,
            "splits": {split: _count(captions[split], words) for split in SPLITS},
            "vocabulary_size": len(words),
            "unlisted_pictures": unlisted,
            "left_out": [asdict(problem) for problem in problems],
        }
        _write_json(folder, REPORT_NAME, report)
        manifest = _describe(files, captions, found.layout, words, len(problems))
        storage.write_text(storage.join(folder, MANIFEST_NAME), manifest.model_dump_json(indent=1) + "\n")
    return manifest


def open_pictures(records: Sequence[CaptionRecord], splits: Mapping[str, str]) -> ray.data.Dataset:
    """Return a Ray dataset that opens every picture once, in parallel and in the records' order.

    It has the columns of PICTURE_SCHEMA and `error`, a string: why a picture cannot be used, null where it can; a few
    dozen pictures a block. Needs a connection to Ray, and at least one record.
    """
    listings = [
        pa.table(
            {
                "name": [record.name for record in chunk],
                "path": [record.path for record in chunk],
                "captions": pa.array([record.captions for record in chunk], pa.list_(pa.string())),
                "split": [splits[record.name] for record in chunk],
            }
        )
        for chunk in (records[start : start + PICTURES_PER_TASK] for start in range(0, len(records), PICTURES_PER_TASK))
    ]
    dataset = ray.data.from_arrow(listings)
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(_open_listing, batch_size=None, batch_format="pyarrow")


def _open_listing(listing: pa.Table) -> pa.Table:
    """Replace the column `path` by what is found there; runs on the workers."""
    rows = [_open_picture(path) for path in listing["path"].to_pylist()]
    images, widths, heights, errors = zip(*rows, strict=True)
    return pa.table(
        {
            "name": listing["name"],
            "image": pa.array(images, pa.large_binary()),
            "captions": listing["captions"],
            "split": listing["split"],
            "width": pa.array(widths, pa.int32()),
            "height": pa.array(heights, pa.int32()),
            "error": pa.array(errors, pa.string()),
        }
    )


def _open_picture(path: str) -> tuple[bytes | None, int | None, int | None, str | None]:
    try:
        data = storage.read_bytes(path)
        return (data, *inspect_picture(data), None)
    except PictureError as error:
        return None, None, None, str(error)
    except OSError as error:
        return None, None, None, f"cannot be read ({error})"


def _write_pictures(
    folder: str,
    source: str,
    records: Sequence[CaptionRecord],
    splits: Mapping[str, str],
    *,
    skip_bad: bool,
    doomed: bool,
) -> tuple[dict[str, list[ShardFile]], list[Problem]]:
    """Write the good pictures to shards; return these by split, and what is wrong with the others.

    Where the run is `doomed`, or becomes so by a bad picture without `skip_bad`, the rest is only opened:
    one run then tells all that is wrong.
    """
    locations = {record.name: storage.relative(record.path, source) for record in records}
    problems: list[Problem] = []
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(folder, split, PICTURE_SCHEMA)) for split in SPLITS}
        progress = Progress(logger, "opened", len(records))
        opened = open_pictures(records, splits) if records else None
        for table in opened.iter_batches(batch_size=None, batch_format="pyarrow") if opened else ():
            bad = table.filter(pc.is_valid(table["error"]))
            problems += [
                Problem(kind="broken_picture", where=locations[name], message=f"{name}: {error}", name=name)
                for name, error in zip(bad["name"].to_pylist(), bad["error"].to_pylist(), strict=True)
            ]
            progress.add(table.num_rows)
            if doomed or (problems and not skip_bad):
                continue
            good = table.filter(pc.is_null(table["error"]))
            for split, writer in writers.items():
                writer.append(good.filter(pc.equal(good["split"], split)))
    return {split: writer.files for split, writer in writers.items()}, problems


def _tokenised(captions: Mapping[str, Sequence[str]]) -> Iterable[list[str]]:
    return (tokenize(caption) for kept in captions.values() for caption in kept)


def _count(captions: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> dict[str, object]:
    """Return the report's figures of one split."""
    ids = [word_id for words in _tokenised(captions) for word_id in vocabulary.encode(words)]
    return {
        "pictures": len(captions),
        "captions": sum(map(len, captions.values())),
        "words": len(ids),
        "unknown_word_share": round(ids.count(UNKNOWN_ID) / len(ids), 6) if ids else 0.0,
    }


def _write_captions(folder: str, captions: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    _write_json(folder, "captions.json", {name: kept for split in SPLITS for name, kept in captions[split].items()})
    for split in SPLITS:
        _write_json(folder, f"captions_{split}.json", captions[split])


def _write_json(folder: str, name: str, content: object) -> None:
    storage.write_text(storage.join(folder, name), json.dumps(content, indent=1) + "\n")


def _describe(
    files: Mapping[str, Sequence[ShardFile]],
    captions: Mapping[str, Mapping[str, Sequence[str]]],
    layout: str,
    words: Vocabulary,
    num_left_out: int,
) -> DatasetManifest:
    splits = {
        split: SplitFiles(
            num_pictures=len(captions[split]),
            num_captions=sum(map(len, captions[split].values())),
            files=tuple(files[split]),
        )
        for split in SPLITS
    }
    return DatasetManifest(
        layout=layout,
        splits=splits,
        num_pictures=sum(split.num_pictures for split in splits.values()),
        num_captions=sum(split.num_captions for split in splits.values()),
        vocabulary_size=len(words),
        num_left_out=num_left_out,
        vocabulary_sha256=hashlib.sha256(words.to_json().encode()).hexdigest(),
        digest=digest_files(file for split in splits.values() for file in split.files),
    )

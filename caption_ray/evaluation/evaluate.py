"""Scoring a bundle on captioned pictures, decoded over the cluster by Ray Data."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from PIL import Image

from caption_ray import storage
from caption_ray.bundle import MANIFEST_NAME, Bundle
from caption_ray.cluster import actor_resources, connect, node_resources
from caption_ray.config import DecodeOptions
from caption_ray.data.images import open_picture, to_square
from caption_ray.data.splits import SPLITS
from caption_ray.data.tables import deal_out
from caption_ray.errors import BadInputError, BundleError, PictureError, UsageError
from caption_ray.evaluation.metrics import CaptionScores, score_captions, score_each
from caption_ray.evaluation.pictures import ALL, ScoredPictures
from caption_ray.evaluation.report import ReportRow, render_report
from caption_ray.inference import Captioner
from caption_ray.progress import Progress
from caption_ray.text.tokenizer import tokenize

logger = logging.getLogger(__name__)

_BATCH = 16
_THUMBNAIL_SIDE = 260
_PICTURES_PER_ACTOR = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One captioned picture. `thumbnail` is a small JPEG file."""

    name: str
    caption: str
    log_probability: float
    references: tuple[str, ...]
    thumbnail: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of a bundle on a split, and where the files about them lie."""

    scores: CaptionScores
    output: str
    report: str


def evaluate(
    bundle: Bundle,
    pictures: ScoredPictures,
    output: str,
    *,
    options: DecodeOptions | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Caption the pictures, score them, and write metrics.json, predictions_SPLIT.json and report.html to `output`.

    options: by default the bundle's own. Raises BadInputError where a picture cannot be read, unless `skip_bad`;
    UsageError where `output` cannot be written to, or holds other results and not `overwrite`; BundleError where the
    bundle's weights give no numbers.
    """
    options = options or bundle.config.decode
    output = storage.output_at("--output", output)
    settings = {
        "bundle": f"{bundle.manifest.name} ({bundle.manifest.digest[:12]})",
        "pictures": pictures.where,
        "split": pictures.split,
        "beam_width": str(options.beam_width),
        "length_penalty": str(options.length_penalty),
        "max_words": str(options.max_words),
    }
    storage.check_writable(output)
    _check_is_no_bundle(output)
    if not overwrite:
        _check_results(output, settings)
    with connect():
        predictions, bad = _predict(bundle, pictures, options)
    if bad and not skip_bad:
        raise _unreadable(bad, "--skip-bad scores without them.")
    if not predictions:
        raise BadInputError(f"{pictures.where}: no picture of split {pictures.split} could be read")
    predicted = {p.name: p.caption.split() for p in predictions}
    references = {p.name: [tokenize(sentence) for sentence in p.references] for p in predictions}
    scores = score_captions(predicted, references, frozenset(bundle.vocabulary.words))
    each = score_each(predicted, references)
    rows = [
        ReportRow(
            name=p.name,
            picture_jpeg=p.thumbnail,
            predicted=p.caption,
            references=p.references,
            scores=each[p.name],
            log_probability=p.log_probability,
        )
        for p in predictions
    ]
    if not overwrite:
        _check_results(output, settings, scores.model_dump())  # again: another one may have ended meanwhile
    # First, since it says whose results these are: an evaluation that is killed here is to be repeated.
    metrics = {**scores.model_dump(), **settings, "left_out": sorted(bad)}
    storage.write_text(storage.join(output, "metrics.json"), json.dumps(metrics, indent=1) + "\n")
    for split in (*SPLITS, ALL) if overwrite else ():  # else another split's would stay beside these scores
        storage.delete_file(storage.join(output, _predictions_name(split)))
    report = storage.join(output, "report.html")
    title = f"{bundle.manifest.name} on {pictures.split}"
    storage.write_text(report, render_report(title, scores, rows, settings))
    captions = {p.name: p.caption for p in predictions}
    storage.write_text(storage.join(output, _predictions_name(pictures.split)), json.dumps(captions, indent=1) + "\n")
    return Evaluation(scores=scores, output=output, report=report)


def _predictions_name(split: str) -> str:
    return f"predictions_{split}.json"


def _check_is_no_bundle(output: str) -> None:
    """Raise UsageError where the scores would take the place of a bundle's own, without which that is spoilt."""
    if storage.exists(storage.join(output, MANIFEST_NAME)):
        raise UsageError(f"{output}: holds a bundle, whose metrics.json is part of it; name another --output")


def _check_results(output: str, settings: Mapping[str, str], scores: Mapping[str, object] | None = None) -> None:
    """Raise UsageError where the results of an evaluation with other settings are there, which would be lost.

    scores: what the error is to carry.
    """
    try:
        found = json.loads(storage.read_bytes(storage.join(output, "metrics.json")))
        differing = [name for name, value in settings.items() if found[name] != value]
    except FileNotFoundError:
        others = ("report.html", _predictions_name(settings["split"]))
        found, differing = {}, [name for name in others if storage.exists(storage.join(output, name))]
    except (ValueError, TypeError, KeyError):  # whatever it is, it is not of an evaluation
        found, differing = {}, ["metrics.json"]
    if differing:
        told = ", ".join(f"{name} {found[name]}" for name in differing if name in found)
        raise UsageError(
            f"{output}: holds other results ({told or f'a {differing[0]} of something else'}); name another --output, "
            "or replace them with --overwrite",
            result=scores,
        )


def predict(bundle: Bundle, pictures: ScoredPictures) -> list[Prediction]:
    """Caption the pictures by the bundle's own search. Raises BadInputError where one cannot be read, BundleError."""
    with connect():
        predictions, bad = _predict(bundle, pictures, bundle.config.decode)
    if bad:
        raise _unreadable(bad, "Prepare the data set again without them.")
    return predictions


def _unreadable(bad: Mapping[str, str], remedy: str) -> BadInputError:
    listing = "\n".join(f"  {name}: {reason}" for name, reason in sorted(bad.items())[:20])
    return BadInputError(f"{len(bad)} picture(s) cannot be read:\n{listing}\n{remedy}")


def _predict(
    bundle: Bundle, pictures: ScoredPictures, options: DecodeOptions
) -> tuple[list[Prediction], dict[str, str]]:
    """Return the predictions, by name, and why other pictures could not be read."""
    num_actors, per_actor = actor_resources(node_resources())
    # Starting an actor takes as long as captioning some hundred pictures.
    num_actors = min(num_actors, 1 + pictures.count // _PICTURES_PER_ACTOR)
    dataset = deal_out(pictures.dataset(), pictures.count, num_actors)
    captioned = dataset.map_batches(
        _CaptionPictures,
        fn_constructor_args=(ray.put(bundle), options),
        batch_size=_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        **per_actor,
    )
    progress = Progress(logger, "captioned", pictures.count)
    predictions: list[Prediction] = []
    bad: dict[str, str] = {}
    for table in captioned.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            error, spoilt = row.pop("error"), row.pop("spoilt")
            if spoilt:
                raise BundleError(error)
            if error is None:
                predictions.append(Prediction(**{**row, "references": tuple(row["references"])}))
            else:
                bad[row["name"]] = error
        progress.add(table.num_rows)
    return sorted(predictions, key=lambda prediction: prediction.name), bad


class _CaptionPictures:
    """One actor of the pool: a copy of the model, picture bytes to captions."""

    def __init__(self, bundle_ref: ray.ObjectRef, options: DecodeOptions) -> None:
        self.captioner = Captioner(ray.get(bundle_ref))
        self.options = options

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.captioner.device.type == "cpu":
            torch.set_num_threads(1)  # an actor a CPU; said here, since it holds for the calling thread alone
        columns = [name for name in ("image", "error") if name in table.column_names]
        side = self.captioner.bundle.config.encoder.image_size
        opened = [_open(side, **row) for row in table.select(columns).to_pylist()]
        good = [picture.square for picture in opened if isinstance(picture, _Opened)]
        spoilt = False  # that is the bundle, not a picture
        try:
            captions = iter(self.captioner.caption(good, self.options))
        except BundleError as error:
            opened, captions, spoilt = [str(error)] * len(opened), iter(()), True
        rows = []
        for row, picture in zip(table.select(["name", "captions"]).to_pylist(), opened, strict=True):
            if isinstance(picture, str):
                rows.append(_Row(name=row["name"], references=row["captions"], error=picture, spoilt=spoilt))
            else:
                best = next(captions)[0]
                rows.append(
                    _Row(
                        name=row["name"],
                        references=row["captions"],
                        caption=best.text,
                        log_probability=best.log_probability,
                        thumbnail=picture.thumbnail,
                    )
                )
        return pa.Table.from_pylist([asdict(row) for row in rows], schema=_ROW_SCHEMA)


@dataclass(kw_only=True)
class _Row:
    name: str
    references: Sequence[str]
    caption: str | None = None
    log_probability: float | None = None
    thumbnail: bytes | None = None
    error: str | None = None
    spoilt: bool = False
    """The error is of the weights."""


_ROW_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("references", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("log_probability", pa.float64()),
        ("thumbnail", pa.binary()),
        ("error", pa.string()),
        ("spoilt", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is kept of a picture: opened, it may be large, and is let go before the next."""

    square: npt.NDArray[np.uint8]
    thumbnail: bytes


def _open(side: int, image: bytes | None, error: str | None = None) -> _Opened | str:
    """Return the picture, or why it cannot be read: errors travel as data, Ray would wrap a raised one."""
    if error is not None:
        return error
    try:
        picture = open_picture(image or b"")
    except PictureError as failure:
        return str(failure)
    return _Opened(to_square(picture, side), _thumbnail(picture))


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    # Pillow would save a picture's comment, which is its owner's, and fail on one that is too long.
    small.info = {name: value for name, value in small.info.items() if name == "icc_profile"}
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()

"""The road from a trained bundle to the service: compared, copied to a place that stays, named in its config."""

import json
import logging
import os
import posixpath
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from caption_ray import storage
from caption_ray.bundle import Bundle, is_whole, kept_location, load_bundle
from caption_ray.cluster import connect
from caption_ray.data.shards import load_manifest
from caption_ray.errors import BundleError, QualityError, RunError, UsageError
from caption_ray.evaluation.comparison import Comparison, Metric, compare
from caption_ray.evaluation.evaluate import predict
from caption_ray.evaluation.pictures import prepared_pictures
from caption_ray.lock import sole_driver
from caption_ray.serve.config_file import bundle_in, with_bundle
from caption_ray.serve.deployment import find_bundle
from caption_ray.serve.rollout import NotToldError, deploy, roll_out
from caption_ray.text.tokenizer import tokenize

logger = logging.getLogger(__name__)

_FEW_PICTURES = 30
"""Drawing from fewer says little of others."""

PROMOTION_NAME = "promotion.json"
_LOCK_NAME = "promotion.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteRequest:
    """Which bundle is to serve, and how it is compared with the one that does."""

    candidate: str
    data: str
    serve_config: str
    models: str
    serving: str | None = None
    metric: Metric = "cider"
    split: Literal["dev", "test"] = "dev"
    num_draws: int = 2000
    seed: int = 0
    force: bool = False
    dashboard: str | None = None
    application: str | None = None
    """Of the Serve config, where several have a captioner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A bundle that is now the one to serve."""

    bundle: str
    model_id: str
    replaced: str | None = None
    """What the config named; where it named none, what served."""
    compared_with: str | None = None
    comparison: Comparison | None = None
    """None where there was nothing to compare with."""
    was_serving: bool
    """The config named it already, in the place where it is kept; nothing but a roll-out was done."""


def promote(request: PromoteRequest) -> Promotion:
    """Make the candidate the bundle that the Serve config names, if its score is no lower than that of the one now.

    Raises QualityError, which carries the comparison, for a lower one unless `force`; UsageError, DatasetError and
    BundleError where something is absent, damaged, or would be gone with a Ray job's own folder; RunError where a
    running service does not take it, and then the config is as it was.
    """
    config, models = (
        storage.output_at(option, location)
        for option, location in (("--serve-config", request.serve_config), ("--models", request.models))
    )
    named = bundle_in(request.serve_config, request.application)  # also tells whether the config can be read at all
    candidate = load_bundle(request.candidate)
    location, model_id = kept_location(request.models, candidate.manifest), candidate.manifest.digest
    if named is not None and storage.absolute(named) == location and is_whole(location, model_id):
        logger.info("%s is what %s names already", location, request.serve_config)
        if request.dashboard is not None:
            roll_out(request.serve_config, request.dashboard, model_id, request.application)
        return Promotion(bundle=location, model_id=model_id, was_serving=True)
    # What would refuse it, before anything is captioned.
    with_bundle(request.serve_config, location, request.application)
    storage.check_writable(_there(models))
    storage.check_writable(posixpath.dirname(config if storage.is_uri(config) else os.path.realpath(config)))
    serving = _load_serving(request.serving or named, force=request.force)
    comparison = None
    if serving is not None and serving.manifest.digest != model_id:
        comparison = _compare(candidate, serving, request)
        _judge(comparison, candidate, serving, request)
    promoted = Promotion(
        bundle=location,
        model_id=model_id,
        replaced=storage.absolute(named) if named else None if serving is None else serving.location,
        compared_with=None if comparison is None or serving is None else serving.location,
        comparison=comparison,
        was_serving=False,
    )
    with sole_driver(models, "folder of promoted bundles", name=_LOCK_NAME):
        if bundle_in(request.serve_config, request.application) != named:
            raise RunError(f"{request.serve_config} names another bundle than the one compared with; promote again")
        _keep(candidate, location)
        _put_into_service(promoted, request)
        _note(promoted, request)
    return promoted


def _there(folder: str) -> str:
    """Return the local folder, or where it is not there that in which it will be made; a URI as it is."""
    while not storage.is_uri(folder) and not storage.exists(folder):
        folder = posixpath.dirname(folder)
    return folder


def _judge(comparison: Comparison, candidate: Bundle, serving: Bundle, request: PromoteRequest) -> None:
    """Say how they compare; raise QualityError where the candidate's score is the lower one, unless `force`."""
    logger.info("%s", comparison)
    if comparison.num_pictures < _FEW_PICTURES:
        logger.warning("%d pictures are too few for the interval to mean much", comparison.num_pictures)
    lineage = candidate.lineage
    if request.split == "dev" and lineage is not None and lineage.num_trials > 1:
        logger.warning(
            "the candidate is the best of %d trials by this same split, which flatters it; --split test compares on "
            "pictures that have chosen nothing",
            lineage.num_trials,
        )
    if comparison.difference >= 0:
        if comparison.verdict != "better":
            logger.warning("no clear difference: the candidate is promoted since its score is not the lower one")
    elif not request.force:
        is_worse = comparison.verdict == "worse"
        lower = "is worse than" if is_worse else "scores lower, if by no more than chance could make, than"
        raise QualityError(
            f"{candidate.location} {lower} {serving.location} on {request.split}: {comparison}; "
            "--force promotes it all the same",
            result={"promoted": False, **comparison.model_dump()},
        )


def _put_into_service(promoted: Promotion, request: PromoteRequest) -> None:
    """Name the bundle in the config, and tell the running service, if there is one; undo both where it is refused."""
    path, before = storage.absolute(request.serve_config), storage.read_text(request.serve_config)
    after = with_bundle(request.serve_config, promoted.bundle, request.application)
    storage.rewrite_text(path, after)
    if request.dashboard is not None:
        try:
            roll_out(request.serve_config, request.dashboard, promoted.model_id, request.application)
        except BaseException as error:  # Ctrl-C too
            if not _still_holds(path, after):
                told = f"{request.serve_config} has been changed meanwhile, and is left so; name in it what is to serve"
                raise RunError(f"{error or type(error).__name__}\n{told}") from error
            storage.rewrite_text(path, before)
            logger.warning("%s names again what it did before", request.serve_config)
            if not isinstance(error, UsageError | NotToldError):
                try:
                    deploy(request.serve_config, request.dashboard)
                except RunError as again:
                    told = f"{error}\nNor could the service be told of the old config again: {again}"
                    raise RunError(told) from error
            raise
    logger.info("%s now names %s", request.serve_config, promoted.bundle)


def _still_holds(path: str, text: str) -> bool:
    try:
        return storage.read_text(path) == text
    except OSError:  # it is gone, or storage is
        return False


def _load_serving(named: str | None, *, force: bool) -> Bundle | None:
    """Return the bundle that serves, by what the config names or else as the service finds it; None for the first."""
    try:
        location = find_bundle(named)
    except BundleError as error:
        # Wrong use is what the absence of a bundle is, or follows from; one that is damaged is there.
        is_absent = any(getattr(one, "exit_code", 1) == UsageError.exit_code for one in (error, error.__cause__))
        if named is None and is_absent:
            logger.info("no bundle serves yet: there is nothing to compare with")
        else:
            _check_force(error, force=force)
        return None
    try:
        return load_bundle(location)
    except BundleError as error:
        _check_force(error, force=force)
        return None


def _check_force(error: BundleError, *, force: bool) -> None:
    """Raise BundleError for a bundle that serves and cannot be read, unless `force`."""
    if not force:
        raise BundleError(f"the bundle that serves cannot be compared with: {error}; --force does without") from error
    logger.warning("%s; nothing is compared", error)


def _compare(candidate: Bundle, serving: Bundle, request: PromoteRequest) -> Comparison:
    """Caption the split with both, each by its own search, and compare."""
    digest = load_manifest(storage.absolute(request.data)).digest
    for bundle in (candidate, serving):
        if bundle.manifest.data_digest != digest:
            logger.warning(
                "%s was trained on another data set than %s: its training pictures may be among those compared on",
                bundle.location,
                request.data,
            )
    pictures = prepared_pictures(request.data, request.split)
    with connect():
        logger.info("captioning %d pictures with %s and %s", pictures.count, candidate.location, serving.location)
        ours, theirs = predict(candidate, pictures), predict(serving, pictures)
    references = {one.name: [tokenize(sentence) for sentence in one.references] for one in ours}
    return compare(
        {one.name: one.caption.split() for one in ours},
        {one.name: one.caption.split() for one in theirs},
        references,
        request.metric,
        num_draws=request.num_draws,
        seed=request.seed,
    )


def _keep(candidate: Bundle, location: str) -> None:
    """Copy the bundle to where nothing replaces it, under its name and digest.

    The sweep's own place has another bundle as soon as the sweep goes on. A copy that a kill cut off is made again.
    Raises BundleError where another one is there by now, which has not been compared.
    """
    if location != candidate.location and not is_whole(location, candidate.manifest.digest):
        storage.delete_folder(location)
        storage.copy_folder(candidate.location, location)
        if load_bundle(location).manifest.digest != candidate.manifest.digest:
            storage.delete_folder(location)
            raise BundleError(f"{candidate.location}: has been replaced while it was being promoted; promote again")


def _note(promoted: Promotion, request: PromoteRequest) -> None:
    """Write beside the bundle why it serves; where it comes from is in its own lineage.json."""
    note = {
        "promoted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": storage.absolute(request.candidate),
        "replaced": promoted.replaced,
        "compared_with": promoted.compared_with,
        "forced": request.force,
        "split": request.split,
        "data": storage.absolute(request.data),
        "comparison": None if promoted.comparison is None else promoted.comparison.model_dump(),
    }
    storage.write_text(storage.join(promoted.bundle, PROMOTION_NAME), json.dumps(note, indent=1) + "\n")

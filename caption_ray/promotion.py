"""The road from a trained bundle to the service: compared, copied to a place that stays, named in its config."""

import json
import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from caption_ray import storage
from caption_ray.bundle import Bundle, kept_location, load_bundle
from caption_ray.cluster import connect
from caption_ray.data.shards import load_manifest
from caption_ray.errors import BundleError, QualityError
from caption_ray.evaluation.comparison import Comparison, Metric, compare
from caption_ray.evaluation.evaluate import predict
from caption_ray.evaluation.pictures import prepared_pictures
from caption_ray.serve.config_file import bundle_in, with_bundle
from caption_ray.serve.deployment import find_bundle
from caption_ray.serve.rollout import roll_out
from caption_ray.text.tokenizer import tokenize

logger = logging.getLogger(__name__)

PROMOTION_NAME = "promotion.json"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A bundle that is now the one to serve."""

    bundle: str
    model_id: str
    replaced: str | None
    comparison: Comparison | None
    """None where there was nothing to compare with."""
    was_serving: bool
    """The candidate was what the config named already, and nothing was done."""


def promote(request: PromoteRequest) -> Promotion:
    """Make the candidate the bundle that the Serve config names, if it is no worse than the one named now.

    Raises QualityError, which carries the comparison, for a worse one unless `force`; UsageError, DatasetError and
    BundleError where something is absent or damaged; RunError where a running service does not take it.
    """
    named = request.serving or bundle_in(request.serve_config)  # also tells whether the config can be read at all
    candidate = load_bundle(request.candidate)
    serving = _load_serving(named, force=request.force)
    if serving is not None and serving.manifest.digest == candidate.manifest.digest:
        logger.info("%s is what %s names already", candidate.location, request.serve_config)
        _roll_out(request, candidate.manifest.digest)
        return Promotion(
            bundle=serving.location,
            model_id=candidate.manifest.digest,
            replaced=None,
            comparison=None,
            was_serving=True,
        )
    comparison = None if serving is None else _compare(candidate, serving, request)
    if comparison is not None:
        logger.info("%s", comparison)
        if comparison.is_worse and not request.force:
            raise QualityError(
                f"{candidate.location} is worse than {serving.location if serving else ''} on {request.split}: "
                f"{comparison}; --force promotes it all the same",
                result={"promoted": False, **comparison.model_dump()},
            )
    promoted = Promotion(
        bundle=_keep(candidate, request.models),
        model_id=candidate.manifest.digest,
        replaced=None if serving is None else serving.location,
        comparison=comparison,
        was_serving=False,
    )
    _note(promoted, request)
    storage.write_text(storage.absolute(request.serve_config), with_bundle(request.serve_config, promoted.bundle))
    logger.info("%s now names %s", request.serve_config, promoted.bundle)
    _roll_out(request, promoted.model_id)
    return promoted


def _roll_out(request: PromoteRequest, model_id: str) -> None:
    """Tell the running service, if there is one; again where it did not take the bundle the last time."""
    if request.dashboard is not None:
        roll_out(request.serve_config, request.dashboard, model_id)


def _load_serving(named: str | None, *, force: bool) -> Bundle | None:
    """Return the bundle that serves, by what the config names or else as the service finds it; None for the first."""
    try:
        location = find_bundle(named)
    except BundleError:
        if named is None:
            logger.info("no bundle serves yet: there is nothing to compare with")
            return None
        location = named
    try:
        return load_bundle(location)
    except BundleError as error:
        if force:
            logger.warning("%s; nothing is compared", error)
            return None
        raise BundleError(f"the bundle that serves cannot be compared with: {error}; --force does without") from error


def _compare(candidate: Bundle, serving: Bundle, request: PromoteRequest) -> Comparison:
    """Caption the split with both, each by its own search, and compare."""
    if candidate.manifest.data_digest != load_manifest(storage.absolute(request.data)).digest:
        logger.warning(
            "%s was trained on another data set than %s: its training pictures may be among those compared on",
            candidate.location,
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


def _keep(candidate: Bundle, models: str) -> str:
    """Copy the bundle to where nothing replaces it, under its name and digest; return where that is.

    The sweep's own place has another bundle as soon as the sweep goes on. A copy that a kill cut off is made again.
    """
    location = kept_location(models, candidate.manifest)
    if location == candidate.location:
        return location
    try:
        load_bundle(location)
    except BundleError:
        storage.delete_folder(location)
        storage.copy_folder(candidate.location, location)
        load_bundle(location)
    return location


def _note(promoted: Promotion, request: PromoteRequest) -> None:
    """Write beside the bundle why it serves; where it comes from is in its own lineage.json."""
    note = {
        "promoted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": storage.absolute(request.candidate),
        "replaced": promoted.replaced,
        "forced": request.force,
        "split": request.split,
        "data": storage.absolute(request.data),
        "comparison": None if promoted.comparison is None else promoted.comparison.model_dump(),
    }
    storage.write_text(storage.join(promoted.bundle, PROMOTION_NAME), json.dumps(note, indent=1) + "\n")

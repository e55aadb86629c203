"""What a sweep leaves: its page, its leaderboard, and the best trial's bundle with its lineage."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import caption_ray
from caption_ray import storage
from caption_ray.bundle import load_bundle
from caption_ray.errors import BundleError, RunError
from caption_ray.lineage import Lineage, code_commit
from caption_ray.train.trainer import inputs_of, write_bundle
from caption_ray.tune.command import train_command
from caption_ray.tune.records import SweepRecord, TrialRecord
from caption_ray.tune.report import SweepView, render_sweep
from caption_ray.tune.request import SweepRequest, trial_request
from caption_ray.tune.search import importances
from caption_ray.tune.table import Standing, markdown, winner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """A sweep whose trials are all over."""

    best: Standing
    standings: list[Standing]
    bundle: str
    report: str
    leaderboard: str
    command: str


def finish(request: SweepRequest, record: SweepRecord, records: Mapping[int, TrialRecord]) -> SweepOutcome:
    """Write report, leaderboard and the best trial's bundle. Raises RunError where not a single trial has a score."""
    standings = request.rank(records)
    best = winner(standings)
    if best is None:
        errors = "\n".join(f"  trial {trial.number}: {trial.error}" for trial in records.values() if trial.error)
        raise RunError(
            f"sweep {request.name}: no trial has ended well; --retry-failed tries them again. The report: "
            f"{write_report(request, records)}\n{errors}"
        )
    run = trial_request(request.base, best.record.number, best.record.settings)
    inputs = inputs_of(run)
    lineage = Lineage(
        sweep=request.folder,
        trial=best.record.number,
        num_trials=len(records),
        preset=request.preset_name,
        experiment=inputs.experiment,
        command=_command(request, best),
        data_digest=record.data_digest,
        features_key=record.features_key,
        metrics=dict(best.metrics),
        caption_ray_version=best.record.caption_ray_version or caption_ray.__version__,
        commit=", ".join(best.record.commits) or None,
    )
    bundle = storage.join(request.folder, "best")
    if not _is_written(bundle, lineage):
        new = f"{bundle}.new"
        metrics = write_bundle(run, inputs, new, name=f"{request.name}-{run.name}", lineage=lineage)
        storage.replace_folder(new, bundle)
        logger.info("wrote %s (epoch %s)", bundle, metrics["epoch"])
    report = write_report(request, records)
    leaderboard = markdown(standings, request.metric, request.space.searched)
    location = storage.join(request.folder, "leaderboard.md")
    storage.write_text(location, leaderboard)
    logger.info("%s\n%s", request.summary(records), leaderboard)
    return SweepOutcome(
        best=best, standings=standings, bundle=bundle, report=report, leaderboard=location, command=lineage.command
    )


def _is_written(bundle: str, lineage: Lineage) -> bool:
    """Tell whether the bundle is there already, of the same trial, epoch and sweep: what reads it is not disturbed."""
    try:
        written = load_bundle(bundle).lineage
    except BundleError:
        return False
    return written is not None and written == lineage.model_copy(update={"made_at": written.made_at})


def write_report(request: SweepRequest, records: Mapping[int, TrialRecord]) -> str:
    """Write the page about the sweep as it stands, and return where it is."""
    standings = request.rank(records)
    best = winner(standings)
    page = render_sweep(
        SweepView(
            name=request.name,
            summary=request.summary(records),
            metric=request.metric,
            space=request.space,
            standings=standings,
            importances=importances(records.values(), request.space, request.metric),
            command=None if best is None else _command(request, best),
            facts={
                "Preset": request.preset_name,
                "Data": storage.absolute(request.data),
                "Features": storage.absolute(request.features),
                "Search": f"{request.search}, seed {request.seed}",
                "Stopped early": _describe_stopping(request),
                "caption_ray": f"{caption_ray.__version__}, commit {code_commit() or 'unknown'}",
            },
        )
    )
    location = report_location(request)
    storage.write_text(location, page)
    return location


def report_location(request: SweepRequest) -> str:
    """Return where the page about the sweep is."""
    return storage.join(request.folder, "report.html")


def _command(request: SweepRequest, best: Standing) -> str:
    run = trial_request(request.base, best.record.number, best.record.settings)
    return train_command(
        request.preset_name,
        request.preset,
        run.experiment,
        data=run.data,
        features=storage.absolute(request.features),
        storage=storage.absolute(request.storage),
        name=f"{request.name}-again",
        device=request.device,
    )


def _describe_stopping(request: SweepRequest) -> str:
    stopping = request.stopping
    if not stopping.may_stop(request.experiment.training.epochs):
        return "none, all trials ran to their end"
    rungs = f"after {stopping.grace_epochs} epochs and then times {stopping.reduction}"
    return f"ASHA: {rungs}, one trial in {stopping.reduction} goes on"

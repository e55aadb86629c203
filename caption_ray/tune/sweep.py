"""A whole sweep: started, or gone on with, to its end."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.tune
import ray.util.state

from caption_ray import storage
from caption_ray.cluster import connect, node_resources
from caption_ray.data.pipeline import Feed, smallest_object_store
from caption_ray.errors import RunError, SweepInterruptedError, UsageError, WorkLeftError
from caption_ray.lock import sole_driver
from caption_ray.train.inputs import RunInputs, build_feeds, check_selection, measure
from caption_ray.train.run_folder import claim_record
from caption_ray.train.stopping import StopWatch, stop_files, stop_on_signal
from caption_ray.train.trainer import inputs_of
from caption_ray.tune.adapters import NUMBER, SweepSearcher, SweepWatch, build_scheduler
from caption_ray.tune.outcome import SweepOutcome, finish, report_location, write_report
from caption_ray.tune.packing import WAITING_BYTES, Packing, pack_trials
from caption_ray.tune.records import (
    RECORD_NAME,
    SweepRecord,
    TrialRecord,
    fail_hopeless,
    read_trials,
    trial_name,
    unfail,
)
from caption_ray.tune.request import SweepRequest
from caption_ray.tune.search import TrialSearch
from caption_ray.tune.space import check_num_trials, check_space, settings_of
from caption_ray.tune.trial import run_trial

logger = logging.getLogger(__name__)

_SHARED_SHARE = 0.75
"""Of a node's object store, what the features may take: from 0.8 on Ray writes to disk what it holds."""


def sweep(request: SweepRequest) -> SweepOutcome:
    """Run the trials, or those that are left of the sweep of this name, and write report, leaderboard and best bundle.

    Raises UsageError, DatasetError, FeatureCacheError and RunError before anything starts where it cannot;
    SweepInterruptedError where it was interrupted from the keyboard; WorkLeftError where it was asked to stop (see
    train.stopping); RunError where not a single trial has a score, or another driver works on the sweep.
    """
    storage.output_at("--storage", request.storage)
    check_space(request.space, request.experiment)
    check_num_trials(request.space, request.num_trials)
    inputs = inputs_of(request.base)
    assert inputs.source.features is not None
    record = SweepRecord(
        preset=request.preset_name,
        experiment=inputs.experiment,
        space=request.space,
        search=request.search,
        stopping=request.stopping,
        seed=request.seed,
        data_digest=inputs.manifest.digest,
        vocabulary_sha256=inputs.manifest.vocabulary_sha256,
        features_key=inputs.source.features.key,
    )
    path = storage.join(request.folder, RECORD_NAME)
    if storage.exists(path):
        claim_record(path, record, "sweep")  # compares alone: refused at once
    else:
        check_selection(inputs)
    storage.check_writable(request.folder)
    with sole_driver(request.folder, "sweep"):
        existed = claim_record(path, record, "sweep")
        return _go_on(request, record, inputs, existed=existed)


def _go_on(request: SweepRequest, record: SweepRecord, inputs: RunInputs, *, existed: bool) -> SweepOutcome:
    records = read_trials(request.folder)
    if request.retry_failed:
        records = unfail(request.folder, records)
    records = fail_hopeless(request.folder, records, request.max_retries)
    num_left = request.num_left(records)
    if existed:
        logger.info("going on with %s, in %s", request.summary(records), request.folder)
    elif outside := request.space.outside(settings_of(request.experiment)):
        told = ", ".join(f"{path} {value:g}" for path, value in outside.items())
        logger.warning("%s: not in --space, so that no trial has the experiment's own settings", told)
    stop_watch = StopWatch(stop_files(request.folder))
    if num_left > 0:
        try:
            with connect(dashboard=True), stop_on_signal(request.folder):  # Ray has a handler of its own, once it is up
                _run_trials(request, record, inputs, records, stop_watch)
        except KeyboardInterrupt:
            pass  # said below, with what there is
        records = read_trials(request.folder)
    if request.num_left(records) > 0:
        write_report(request, records)
        told = f"{request.summary(records)}; the same command goes on with it. The report so far: "
        if stop_watch.is_asked():
            raise WorkLeftError(f"asked to stop: {told}{report_location(request)}")
        raise SweepInterruptedError(f"interrupted: {told}{report_location(request)}")
    return finish(request, record, records)


def _run_trials(
    request: SweepRequest,
    record: SweepRecord,
    inputs: RunInputs,
    records: dict[int, TrialRecord],
    stop_watch: StopWatch,
) -> None:
    _check_dashboard()
    feeds, are_shared = share_feeds(build_feeds(inputs))
    packing = pack_trials(
        node_resources(),
        device=request.device,
        cpus_per_trial=request.cpus_per_trial,
        gpus_per_trial=request.gpus_per_trial,
        memory_per_trial_gb=request.memory_per_trial_gb,
        num_at_once=request.num_at_once,
        kept_cpus=0 if are_shared else 1,
    )
    board = storage.join(request.folder, "tune")
    num_left = request.num_left(records)
    logger.info("%d trials to run, %d at a time; tensorboard --logdir %s", num_left, packing.num_at_once, board)
    metric, preset = request.metric, settings_of(request.experiment)
    search = TrialSearch(request.space, request.search, metric, request.seed)
    tuner = ray.tune.Tuner(
        _trainable(request, packing, feeds, inputs),
        tune_config=ray.tune.TuneConfig(
            search_alg=SweepSearcher(search, records, preset if request.space.has(preset) else None),
            scheduler=build_scheduler(request.stopping, metric, request.experiment.training.epochs, records.values()),
            num_samples=num_left,
            max_concurrent_trials=packing.num_at_once,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=request.folder,
            failure_config=ray.tune.FailureConfig(max_failures=request.max_retries),
            callbacks=[
                SweepWatch(
                    search,
                    record,
                    records,
                    name=request.name,
                    folder=request.folder,
                    num_trials=request.num_trials,
                    max_retries=request.max_retries,
                    stop_watch=stop_watch,
                )
            ],
            verbose=0,
        ),
    )
    _quieten_tune()
    # A trial that was cut off after its last epoch has but its bundle to write, and reports no score any more.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    if not storage.is_uri(request.folder):
        # Tune's event files are copied there with its snapshots: a kill then costs two seconds of them, not ten.
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    try:
        tuner.fit()
    except ray.tune.TuneError as error:
        raise RunError(f"sweep {request.name}: {error}; the same command goes on with it") from error


def _quieten_tune() -> None:
    """Keep Tune from naming a TensorBoard folder that is gone when the sweep ends, and its own way of going on."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune.tune").addFilter(lambda record: "Tuner.restore" not in record.getMessage())


def _trainable(request: SweepRequest, packing: Packing, feeds: Mapping[str, Feed], inputs: RunInputs) -> Any:
    with_shared = ray.tune.with_parameters(
        run_trial, base=request.base, workers=packing.workers, feeds=feeds, statistics=measure(inputs)
    )
    # The function itself only waits for its worker, which reserves the trial's CPUs or its share of a GPU.
    return ray.tune.with_resources(with_shared, {"memory": WAITING_BYTES})


def share_feeds(feeds: Mapping[str, Feed]) -> tuple[dict[str, Feed], bool]:
    """Read the pictures into the object store, once for all trials, which hold them there; tell whether they fit.

    Where they do not, each trial reads them in each epoch, as a run by itself would.
    """
    needed, room = sum(feed.num_bytes for feed in feeds.values()), _SHARED_SHARE * smallest_object_store()
    if needed > room:
        logger.warning(
            "the features take %.2f GB, for which Ray's object store has %.2f GB on a node: each trial reads them, in "
            "every epoch; start Ray with a larger one (--object-store-memory), or cache fewer views (--num-views)",
            needed / 1e9,
            room / 1e9,
        )
        return dict(feeds), False
    logger.info("reading the features, once for all trials")
    # It warns, and goes on, where the tasks that read one split have not yet given their CPUs to those of the next.
    logging.getLogger("ray.data.dataset").setLevel(logging.ERROR)
    shared = {split: replace(feed, dataset=feed.dataset.materialize(), resident=True) for split, feed in feeds.items()}
    return shared, True


def _check_dashboard() -> None:
    """Raise UsageError for a cluster without dashboard.

    Ray Train asks it whether a stopped trial's controller is gone, and frees the trial's place only then (2.60).
    """
    try:
        ray.util.state.list_nodes(address=ray.get_runtime_context().gcs_address, timeout=30)
    except Exception as error:
        raise UsageError(
            f"a sweep needs Ray's dashboard, which frees the places of stopped trials: {error}; start the cluster "
            "with --include-dashboard=true, and with ray[default] installed"
        ) from error


def _trial_name(trial: Any) -> str:
    return f"trial_{trial_name(trial.config[NUMBER])}"

"""Starting, resuming and finishing a training run under Ray Train."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ray
import ray.train
import ray.train.torch
import torch

from caption_ray import storage
from caption_ray.bundle import BundleConfig, load_bundle, save_bundle
from caption_ray.cluster import KEEP_MEMORY, connect, node_resources, set_up_ray_train
from caption_ray.config import Experiment
from caption_ray.data.pipeline import ExactSplit, Feed, Undivided
from caption_ray.data.shards import VOCABULARY_NAME, read_vocabulary
from caption_ray.data.staging import check_stage
from caption_ray.device import resolve_precision
from caption_ray.errors import DivergedError, RunError, UsageError, WorkLeftError
from caption_ray.lineage import Lineage
from caption_ray.lock import sole_driver
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.encoder_source import save_encoder
from caption_ray.train.failure_log import FailureLog, last_line
from caption_ray.train.inputs import RunInputs, build_feeds, check_selection, describe, find_inputs, measure
from caption_ray.train.loop import train_loop
from caption_ray.train.resources import WorkerResources, plan_workers
from caption_ray.train.run_folder import (
    RANK,
    RunRecord,
    best_checkpoint,
    bundle_location,
    check_place,
    claim,
    delete_stopped,
    how_to_go_on,
    is_begun,
    is_finished,
    mend_snapshot,
)
from caption_ray.train.setup import FeatureStatistics, RunPlan
from caption_ray.train.state import load_best_weights
from caption_ray.train.steps import groups_per_worker
from caption_ray.train.stopping import plain_interrupts, stop_files, stop_on_signal

logger = logging.getLogger(__name__)

MAX_WORKER_FAILURES = 3
"""Worker deaths that a run survives, each at the cost of the epoch under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What to train, on what, and where to keep it."""

    experiment: Experiment
    preset: Experiment
    """The experiment before any setting was changed; see `find_encoder`."""
    data: str
    features: str | None
    storage: str
    name: str
    num_workers: int | None = None
    min_workers: int | None = None
    """With how few the run goes on where nodes are lost, or begins; None: all of them."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cpus_per_worker: float | None = None
    stage: str | None = None
    """Folder on each node, to which shards are copied once (see data.staging)."""

    @property
    def run_folder(self) -> str:
        """STORAGE/NAME, absolute."""
        return storage.join(storage.absolute(self.storage), self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """A finished run."""

    bundle: str
    metrics: dict[str, object]
    was_finished: bool
    """The run had been finished before, and nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a run that is part of something larger is handed, where one by itself finds or makes it."""

    workers: WorkerResources
    feeds: Mapping[str, Feed]
    """Both splits' pictures, such that several runs can read them at a time."""
    statistics: FeatureStatistics | None
    split: ray.train.DataConfig = field(default_factory=ExactSplit)
    """How the pictures are dealt out to the workers."""
    callbacks: tuple[ray.train.UserCallback, ...] = ()
    max_worker_failures: int = MAX_WORKER_FAILURES
    """Worker deaths that it survives by itself; 0 where whoever runs it starts it again."""


def train(request: TrainRequest, surroundings: Surroundings | None = None) -> TrainOutcome:
    """Train, or go on with the run of this name, and write the bundle of its best epoch.

    Raises UsageError, DatasetError, FeatureCacheError and RunError before anything starts where it cannot; RunError
    where the training itself fails, or another driver works on the run; WorkLeftError where it was asked to stop (see
    train.stopping) and has saved.
    """
    storage.output_at("--storage", request.storage)
    check_stage(request.stage)
    inputs = inputs_of(request)
    record = RunRecord(
        experiment=inputs.experiment,
        data_digest=inputs.manifest.digest,
        vocabulary_sha256=inputs.manifest.vocabulary_sha256,
        features_key=None if inputs.source.features is None else inputs.source.features.key,
        encoder_sha256=inputs.source.weights_sha256,
    )
    if surroundings is None:
        check_place(request.run_folder)
    with connect():
        workers = surroundings.workers if surroundings is not None else _plan_workers(request)
        _check(inputs.experiment, workers)
        if is_begun(request.run_folder):
            claim(request.run_folder, record)  # compares alone: refused at once
        else:
            check_selection(inputs)
        if is_finished(request.run_folder):
            return _finished(request)
        # Whoever hands surroundings in sees to it that the run has no other driver.
        alone = sole_driver(request.run_folder, "run") if surroundings is None else contextlib.nullcontext()
        with alone, stop_on_signal(request.run_folder):
            if claim(request.run_folder, record):
                logger.info("going on with run %s in %s", request.name, request.run_folder)
            if is_finished(request.run_folder):  # while another driver was waited for
                return _finished(request)
            return _run(request, inputs, surroundings or _own_surroundings(request, inputs, workers))


def inputs_of(request: TrainRequest) -> RunInputs:
    """Return what a run trains on; see `find_inputs`."""
    return find_inputs(request.experiment, request.preset, request.data, request.features)


def _own_surroundings(request: TrainRequest, inputs: RunInputs, workers: WorkerResources) -> Surroundings:
    feeds, statistics = build_feeds(inputs, request.stage), measure(inputs)
    # What is read once needs nobody that deals it out to a single worker: two processes less to wait for.
    split = Undivided() if workers.num_workers == 1 and all(f.resident for f in feeds.values()) else ExactSplit()
    return Surroundings(workers=workers, feeds=feeds, statistics=statistics, split=split)


def _plan_workers(request: TrainRequest) -> WorkerResources:
    return plan_workers(
        node_resources(),
        device=request.device,
        num_workers=request.num_workers,
        min_workers=request.min_workers,
        cpus_per_worker=request.cpus_per_worker,
    )


def _check(experiment: Experiment, workers: WorkerResources) -> None:
    """Raise UsageError for settings that these workers cannot train with."""
    if not workers.use_gpu:
        resolve_precision(experiment.training.precision, torch.device("cpu"))
    try:
        for num_workers in range(workers.min_workers, workers.num_workers + 1):
            groups_per_worker(experiment.training, num_workers)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _finished(request: TrainRequest) -> TrainOutcome:
    location = bundle_location(request.run_folder)
    logger.info("run %s is finished; its bundle: %s", request.name, location)
    return TrainOutcome(bundle=location, metrics=load_bundle(location).metrics, was_finished=True)


def _run(request: TrainRequest, inputs: RunInputs, surroundings: Surroundings) -> TrainOutcome:
    _fit(request, inputs, surroundings)
    location = bundle_location(request.run_folder)
    metrics = write_bundle(request, inputs, location)
    logger.info("wrote %s (epoch %s)", location, metrics["epoch"])
    return TrainOutcome(bundle=location, metrics=metrics, was_finished=False)


def _fit(request: TrainRequest, inputs: RunInputs, surroundings: Surroundings) -> None:
    experiment, manifest, source = inputs.experiment, inputs.manifest, inputs.source
    feeds, workers = surroundings.feeds, surroundings.workers
    if source.features is None:
        save_encoder(request.run_folder, source.encoder)
    plan = RunPlan(
        name=request.name,
        experiment=experiment,
        run_folder=request.run_folder,
        data=inputs.data,
        vocabulary=read_vocabulary(inputs.data, manifest),
        cached=source.features is not None,
        encoder_sha256=source.weights_sha256,
        num_features=source.encoder.num_features,
        feature_statistics=surroundings.statistics,
        train_feed=describe(feeds["train"]),
        dev_feed=describe(feeds["dev"]),
        num_train_captions=manifest.splits["train"].num_captions,
        num_dev_pictures=manifest.splits["dev"].num_pictures,
        threads_per_worker=workers.threads_per_worker,
        gpu_share=workers.gpu_share,
        resume_from=mend_snapshot(request.run_folder),
        stop_files=stop_files(request.run_folder),
    )
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config=plan.model_dump(mode="json"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.range, use_gpu=workers.use_gpu, resources_per_worker=workers.per_worker
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        datasets={split: feed.dataset for split, feed in feeds.items()},
        dataset_config=surroundings.split,
        run_config=ray.train.RunConfig(
            name=request.name,
            storage_path=storage.absolute(request.storage),
            worker_runtime_env={"env_vars": KEEP_MEMORY},
            callbacks=[FailureLog(), *surroundings.callbacks],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            failure_config=ray.train.FailureConfig(
                max_failures=surroundings.max_worker_failures, controller_failure_limit=MAX_WORKER_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=RANK),
        ),
    )
    set_up_ray_train()
    try:
        with plain_interrupts():
            result = trainer.fit()
    except KeyboardInterrupt:
        logger.info("run %s: %s", request.name, how_to_go_on(request.run_folder))
        raise
    except Exception as error:
        raise RunError(f"run {request.name} failed: {last_line(error)}\n{how_to_go_on(request.run_folder)}") from error
    ended = result.return_value or {}
    if "failed" in ended:
        raise RunError(f"run {request.name} failed: {ended['failed']}")
    if "diverged" in ended:
        raise DivergedError(f"run {request.name} failed: {ended['diverged']}")
    if "stopped" in ended:
        raise WorkLeftError(
            f"run {request.name} was asked to stop, and did so {ended['stopped']}; the same command goes on from there"
        )
    delete_stopped(request.run_folder)


def write_bundle(
    request: TrainRequest, inputs: RunInputs, location: str, *, name: str | None = None, lineage: Lineage | None = None
) -> dict[str, object]:
    """Write the best epoch's weights and the encoder as a bundle, and return what it says of its scores.

    name: that the bundle is given, by default the run's. Raises RunError where the run has no checkpoint yet; it need
    not have ended.
    """
    experiment, source = inputs.experiment, inputs.source
    select_by = experiment.training.select_by
    best, record = best_checkpoint(request.run_folder, select_by)
    epoch = record.progress.epochs_done
    vocabulary = Vocabulary.from_json(
        read_vocabulary(inputs.data, inputs.manifest), storage.join(inputs.data, VOCABULARY_NAME)
    )
    config = BundleConfig(
        encoder=experiment.encoder,
        model=experiment.model,
        decode=experiment.decode,
        num_features=source.encoder.num_features,
        vocabulary_size=len(vocabulary),
    )
    model = CaptionModel(source.encoder, Decoder(experiment.model, config.num_features, config.vocabulary_size))
    with ray.train.Checkpoint(best).as_directory() as folder:
        load_best_weights(Path(folder), model)
    described: dict[str, object] = {**record.metrics, "epoch": epoch}
    if lineage is not None and lineage.metrics.get("epoch") != epoch:  # the best one is gone
        lineage = lineage.model_copy(update={"metrics": {**record.metrics, "epoch": float(epoch)}})
    described |= {"selected_by": select_by, "dev_beam_width": experiment.training.dev_beam_width}
    save_bundle(
        location,
        name=name or request.name,
        data_digest=inputs.manifest.digest,
        config=config,
        vocabulary=vocabulary,
        model=model,
        metrics=described,
        lineage=lineage,
    )
    return described

"""The function that every Ray Train worker runs: epochs, dev decoding, checkpoints."""

import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import ray.train
import ray.train.collective
import ray.train.torch
import torch

from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.batches import batched
from caption_ray.data.images import seeded_generator
from caption_ray.data.picture_format import PictureFormat
from caption_ray.data.pipeline import Share
from caption_ray.data.shards import first_pictures
from caption_ray.device import check_kernels, limit_memory
from caption_ray.errors import RunError, UsageError
from caption_ray.logs import configure_logging, quieten_ray_workers
from caption_ray.model.encoder import Encoder
from caption_ray.model.frozen_encoder import EncoderPass, FrozenEncoder, encoder_precision
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.agreement import all_reduce, from_first, gathered, shared_precision
from caption_ray.train.board import NUM_SHOWN, Board
from caption_ray.train.dev import DevResult, decode_share, gather_result
from caption_ray.train.encoder_source import load_encoder, with_features
from caption_ray.train.gradients import NonFiniteLossError
from caption_ray.train.meter import Meter, dev_values, metric_name, summary
from caption_ray.train.optimizer import set_learning_rate
from caption_ray.train.run_folder import RANK, keep_stopped, stopped_checkpoint, stopped_location
from caption_ray.train.schedule import learning_rate_factor
from caption_ray.train.setup import DDP_OPTIONS, FeedPlan, RunPlan, build_training_model, idle_batch_of
from caption_ray.train.state import (
    Position,
    Progress,
    WorkerState,
    evaluated_model,
    load_state,
    load_worker_state,
    save_state,
)
from caption_ray.train.steps import build_stepper, groups_per_worker
from caption_ray.train.stopping import StopWatch

logger = logging.getLogger(__name__)

_DEV_BATCH = 32

_Item = TypeVar("_Item")


def train_loop(config: dict[str, object]) -> dict[str, object]:
    """Train by the RunPlan in `config`; Ray calls it in every worker, again from the last checkpoint after a failure.

    Returns {"failed": reason} or {"diverged": reason} where training cannot go on, which no restart would change,
    {"stopped": where} where it was asked to stop and has saved; else an empty mapping.
    """
    configure_logging()
    quieten_ray_workers()  # again: Ray Train has set up its loggers since the process started
    plan = RunPlan.model_validate(config)
    try:
        worker = _Worker(plan)
    except UsageError as error:
        return {"failed": str(error)}
    progress = worker.resume()
    training = plan.experiment.training
    rank = ray.train.get_context().get_world_rank()
    pictures = first_pictures(plan.data, "dev", NUM_SHOWN)
    board = Board(plan.run_folder, pictures, progress.epochs_done + 1) if rank == 0 else None
    try:
        while not progress.is_over(training.epochs, training.patience):
            started = time.monotonic()
            values = worker.train_epoch(progress)
            if values is None:
                return {"stopped": f"in epoch {progress.epochs_done + 1} of {training.epochs}"}
            result = worker.decode_dev(frozenset(pictures))
            values |= dev_values(result)
            score = getattr(result.scores, training.select_by)
            progress = progress.after_epoch(score, time.monotonic() - started)
            if board is not None:
                board.add_epoch(progress.epochs_done, values, result.shown)
                logger.info("%s", summary(progress, training.epochs, values))
            worker.report(progress, values)
    except NonFiniteLossError as error:
        return {"diverged": str(error)}
    finally:
        worker.stepper.close()
        if board is not None:
            board.close()
    return {}


def _check_kernels(device: torch.device, num_workers: int) -> None:
    """Raise UsageError, on all workers, where the first one's torch cannot compute on its GPU.

    Raises RunError where this one's cannot though the first one's can: not returned as the other is, since those that
    can would be left waiting for it.
    """
    reason: str | None = None
    try:
        check_kernels(device)
    except UsageError as error:
        reason = str(error)
    # By Ray: what the workers have to reach each other may need those kernels too. It takes a thousand bytes.
    first = ray.train.collective.broadcast_from_rank_zero(reason and reason[:800]) if num_workers > 1 else reason
    if first is not None:
        raise UsageError(first)
    if reason is not None:
        raise RunError(reason)


class _Worker:
    """One worker's model and data."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.rank = ray.train.get_context().get_world_rank()
        self.num_workers = ray.train.get_context().get_world_size()
        self.device = ray.train.torch.get_device()
        _check_kernels(self.device, self.num_workers)
        limit_memory(self.device, plan.gpu_share)
        if plan.threads_per_worker and self.device.type == "cpu":
            torch.set_num_threads(plan.threads_per_worker)
            torch.set_flush_denormal(True)  # tiny gradients and moments are slow to compute with, and worth nothing
        self.vocabulary = Vocabulary.from_json(plan.vocabulary, "vocabulary.json")
        experiment = plan.experiment
        precision = shared_precision(experiment.training.precision, self.device)
        encoder = _load_encoder(plan)
        self.encode: EncoderPass | None = None
        if encoder is not None and not encoder.finetune_stages:
            # No part of what trains: its features come with the batches, as cached ones do.
            of_encoder = encoder_precision(experiment.training.precision, precision, experiment.encoder.backbone)
            self.encode, encoder = FrozenEncoder(encoder).on(self.device, of_encoder), None
        model = build_training_model(plan, encoder, len(self.vocabulary)).to(self.device)
        idle = with_features(idle_batch_of(plan.train_feed), self.encode)
        wrap = functools.partial(ray.train.torch.prepare_model, parallel_strategy_kwargs=DDP_OPTIONS)
        self.stepper = build_stepper(model, experiment, precision, self.device, idle, wrap)
        self.train_plan, self.dev_plan = self._plan_batches(plan.train_feed), self._plan_batches(plan.dev_feed)
        # Ray has the workers wait for each other at every shard: all ask for them in the same order.
        self.train_share = _share("train", self.train_plan.read, plan.train_feed)
        self.dev_share = _share("dev", self.dev_plan.rows, plan.dev_feed)
        # One looks, and tells the others: what all workers see of a shared file system may differ for a while.
        self.stop_watch = StopWatch(plan.stop_files if self.rank == 0 else ())
        self.position = Position()
        """Where in the first epoch to begin."""
        self.own_state: WorkerState | None = None
        """What this worker knew there; None at an epoch's start."""
        neighbours = ray.train.get_context().get_local_world_size()
        told = (self.num_workers, self.device.type, neighbours, precision)
        self._say("%d worker(s) on %s, %d of them on this node; %s%s", *told, self.stepper.manner)

    def resume(self) -> Progress:
        """Load the last checkpoint, if there is one, and return how far it had come."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.plan.resume_from is not None:
            checkpoint = ray.train.Checkpoint(self.plan.resume_from)
        progress = Progress()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                progress = load_state(Path(folder), self.stepper)
        # One looks here too: each on its own, some might go on from there and others from the epoch's start.
        stopped = from_first(stopped_checkpoint(self.plan.run_folder) if self.rank == 0 else None)
        if stopped is not None and stopped.position and stopped.progress.epochs_done == progress.epochs_done:
            epoch, position = progress.epochs_done + 1, stopped.position
            then = (position.num_workers, position.device, position.precision or self.stepper.precision)
            if then == (self.num_workers, self.device.type, self.stepper.precision):
                with ray.train.Checkpoint(stopped_location(self.plan.run_folder)).as_directory() as folder:
                    progress = load_state(Path(folder), self.stepper)
                    self.own_state = load_worker_state(Path(folder), self.rank)
                self.position = position
                self._say("going on after step %d of epoch %d of run %s", position.num_steps, epoch, self.plan.name)
                return progress
            self._say("epoch %d is begun again: it was stopped with %d worker(s) on %s, %s", epoch, *then)
        if checkpoint is not None:
            self._say("going on after epoch %d of run %s", progress.epochs_done, self.plan.name)
        return progress

    def _say(self, message: str, *values: object) -> None:
        """Log a line once, not from every worker."""
        if self.rank == 0:
            logger.info(message, *values)

    def train_epoch(self, progress: Progress) -> dict[str, float] | None:
        """Train on every caption once; return the epoch's loss, rate and speed over all workers.

        Returns None where it was asked to stop and has saved where it is.
        """
        epoch, started = progress.epochs_done, time.monotonic()
        experiment = self.plan.experiment
        # Dropout must not depend on how many steps ran before: a resumed run repeats an undisturbed one.
        torch.manual_seed(int(seeded_generator(experiment.training.seed, "dropout", epoch, self.rank).integers(2**62)))
        self.stepper.wrapped.train()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss sum, words
        meter = Meter(epoch, self.plan, self.position)
        factor = 1.0
        whose = "" if self.num_workers == 1 else " of the first worker's share"
        share = self.train_share
        batches = self.train_plan.train_batches(share, epoch, resident=share.resident)
        batches = itertools.islice(batches, self.position.num_steps, None)
        batches = (with_features(batch, self.encode) for batch in batches)
        if self.own_state is not None:
            self.own_state.restore(totals)
        self.position, self.own_state = Position(), None
        for batch, counts in self.stepper.counted(batches, self.stop_watch.is_asked):
            if counts.stop:
                self.stepper.watch.settle()
                self._save_stopped(progress, started, meter, totals)
                return None
            factor = learning_rate_factor(experiment.optimizer, (epoch + meter.share) / experiment.training.epochs)
            set_learning_rate(self.stepper.optimizer, factor)
            totals += self.stepper.step(batch, counts)
            meter.add(counts)
            if self.rank == 0 and meter.is_due():
                logger.info("%s, loss %.3f%s", meter, totals[0] / totals[1], whose)
        self.stepper.watch.settle()
        all_reduce(totals)
        if totals[1] == 0:
            raise NonFiniteLossError("no step of the epoch had a finite loss; train with training.precision=fp32")
        return {
            "loss/train": float(totals[0] / totals[1]),
            "optimizer/learning_rate": experiment.optimizer.learning_rate * factor,
            "speed/words_per_s": meter.words_per_s,
            "speed/captions_per_s": meter.captions_per_s,
        }

    def decode_dev(self, show: frozenset[str]) -> DevResult:
        """Decode the whole dev split, each worker its share."""
        training, decode = self.plan.experiment.training, self.plan.experiment.decode
        rows = batched(self.dev_share, _DEV_BATCH)
        share = decode_share(
            evaluated_model(self.stepper),
            ((own, with_features(self.dev_plan.whole_batch(own), self.encode)) for own in rows),
            vocabulary=self.vocabulary,
            options=decode.model_copy(update={"beam_width": training.dev_beam_width}),
            show=show,
            precision=self.stepper.precision,
            device=self.device,
        )
        return gather_result(share, self.vocabulary, self.plan.num_dev_pictures)

    def report(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Hand the epoch's values, and on rank 0 a checkpoint, to Ray."""
        metrics = {metric_name(name): value for name, value in values.items()}
        metrics |= {"epoch": progress.epochs_done, "train_seconds": progress.train_seconds}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), self.stepper, progress, metrics)
            ray.train.report(
                metrics | {RANK: progress.rank},
                checkpoint=ray.train.Checkpoint(folder),
                checkpoint_dir_name=f"epoch_{progress.epochs_done:04d}",
            )

    def _save_stopped(self, progress: Progress, started: float, meter: Meter, totals: torch.Tensor) -> None:
        """Save in the midst of an epoch, with what each worker alone knows."""
        states = gathered(WorkerState.take(totals))
        if self.rank != 0:
            return
        progress = progress.model_copy(update={"train_seconds": progress.train_seconds + time.monotonic() - started})
        position = meter.position(self.num_workers, self.device.type, self.stepper.precision)
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), self.stepper, progress, {}, position, states)
            keep_stopped(self.plan.run_folder, folder)
        logger.info("asked to stop: saved after step %d of %s", meter.num_steps, meter)

    def _plan_batches(self, feed: FeedPlan) -> BatchPlan:
        training = self.plan.experiment.training
        return BatchPlan(
            picture_format=PictureFormat(shape=feed.shape, dtype=feed.dtype),
            crop_to=feed.crop_to,
            vocabulary=self.vocabulary,
            captions_per_picture=training.captions_per_picture,
            groups_per_batch=groups_per_worker(training, self.num_workers),
            shuffle_buffer=training.shuffle_buffer,
            seed=training.seed,
            rank=self.rank,
            # A GPU would wait while so many batches are made at once.
            in_step=self.num_workers > 1 and self.device.type == "cpu",
        )


def _load_encoder(plan: RunPlan) -> Encoder | None:
    """Return the encoder as the driver put it into the run's folder: a worker may not see where it came from."""
    if plan.cached:
        return None
    return load_encoder(plan.run_folder, plan.experiment.encoder, plan.encoder_sha256, "use another --name")


def _share(split: str, read: Callable[[Iterable[pa.Table]], Iterator[_Item]], feed: FeedPlan) -> Share[_Item]:
    return Share(ray.train.get_dataset_shard(split), read, resident=feed.resident)

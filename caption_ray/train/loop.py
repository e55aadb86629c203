"""The function that every Ray Train worker runs: epochs, dev decoding, checkpoints."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from caption_ray.data.batch_plan import BatchPlan
from caption_ray.data.batches import CaptionBatch, PictureFormat, batched
from caption_ray.data.images import seeded_generator
from caption_ray.data.pipeline import Share
from caption_ray.data.shards import first_pictures
from caption_ray.device import check_kernels, resolve_precision
from caption_ray.errors import UsageError
from caption_ray.logs import configure_logging, quieten_ray_workers
from caption_ray.model.encoder import Encoder
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.board import NUM_SHOWN, Board
from caption_ray.train.dev import DevResult, decode_share, gather_result
from caption_ray.train.encoder_source import load_encoder
from caption_ray.train.schedule import learning_rate_factor
from caption_ray.train.setup import DDP_OPTIONS, FeedPlan, RunPlan, build_training_model
from caption_ray.train.state import Progress, evaluated_model, load_state, save_state
from caption_ray.train.steps import (
    NonFiniteLossError,
    StepCounts,
    Stepper,
    all_reduce,
    average_weights,
    build_optimizer,
    counted,
    groups_per_worker,
    idle_batch,
    make_scaler,
    set_learning_rate,
)

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0
_DEV_BATCH = 32

_Item = TypeVar("_Item")


def train_loop(config: dict[str, object]) -> dict[str, object]:
    """Train by the RunPlan in `config`; Ray calls it in every worker, again from the last checkpoint after a failure.

    Returns {"failed": reason} where training cannot go on, which no restart would change; else an empty mapping.
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
            epoch, started = progress.epochs_done, time.monotonic()
            values = worker.train_epoch(epoch)
            result = worker.decode_dev(frozenset(pictures))
            values |= _dev_values(result)
            score = getattr(result.scores, training.select_by)
            progress = progress.after_epoch(score, time.monotonic() - started)
            if board is not None:
                board.add_epoch(progress.epochs_done, values, result.shown)
                logger.info("%s", _summary(progress, training.epochs, values))
            worker.report(progress, values)
    except NonFiniteLossError as error:
        return {"failed": str(error)}
    finally:
        if board is not None:
            board.close()
    return {}


class _Worker:
    """One worker's model and data."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.rank = ray.train.get_context().get_world_rank()
        self.num_workers = ray.train.get_context().get_world_size()
        self.device = ray.train.torch.get_device()
        check_kernels(self.device)
        if plan.threads_per_worker and self.device.type == "cpu":
            torch.set_num_threads(plan.threads_per_worker)
            torch.set_flush_denormal(True)  # tiny gradients and moments are slow to compute with, and worth nothing
        self.vocabulary = Vocabulary.from_json(plan.vocabulary, "vocabulary.json")
        experiment = plan.experiment
        precision = resolve_precision(experiment.training.precision, self.device)
        model = build_training_model(plan, _load_encoder(plan), len(self.vocabulary)).to(self.device)
        self.stepper = Stepper(
            model=model,
            wrapped=ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP_OPTIONS),
            optimizer=build_optimizer(model, experiment.optimizer),
            scaler=make_scaler(precision, self.device),
            average=average_weights(model, experiment.training.average_decay),
            settings=experiment,
            precision=precision,
            device=self.device,
            idle=_idle_batch(plan.train_feed),
        )
        self.train_plan, self.dev_plan = self._plan_batches(plan.train_feed), self._plan_batches(plan.dev_feed)
        # Ray has the workers wait for each other at every shard: all ask for them in the same order.
        self.train_share = _share("train", self.train_plan.read, plan.train_feed)
        self.dev_share = _share("dev", self.dev_plan.rows, plan.dev_feed)
        if self.rank == 0:
            logger.info("%d worker(s) on %s, %s", self.num_workers, self.device.type, precision)

    def resume(self) -> Progress:
        """Load the last checkpoint, if there is one, and return how far it had come."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.plan.resume_from is not None:
            checkpoint = ray.train.Checkpoint(self.plan.resume_from)
        if checkpoint is None:
            return Progress()
        with checkpoint.as_directory() as folder:
            progress = load_state(Path(folder), self.stepper)
        if self.rank == 0:
            logger.info("going on after epoch %d of run %s", progress.epochs_done, self.plan.name)
        return progress

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train on every caption once; return the epoch's loss, rate and speed over all workers."""
        experiment = self.plan.experiment
        # Dropout must not depend on how many steps ran before: a resumed run repeats an undisturbed one.
        torch.manual_seed(int(seeded_generator(experiment.training.seed, "dropout", epoch, self.rank).integers(2**62)))
        self.stepper.wrapped.train()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss sum, words
        meter = _Meter(epoch, self.plan)
        factor = 1.0
        share = self.train_share
        batches = self.train_plan.train_batches(share, epoch, resident=share.resident)
        for batch, counts in counted(batches, self.device):
            factor = learning_rate_factor(experiment.optimizer, (epoch + meter.share) / experiment.training.epochs)
            set_learning_rate(self.stepper.optimizer, factor)
            totals += self.stepper.step(batch, counts)
            meter.add(counts)
            if self.rank == 0 and meter.is_due():
                logger.info("%s, loss %.3f", meter, totals[0] / totals[1])
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
            ((own, self.dev_plan.whole_batch(own)) for own in rows),
            vocabulary=self.vocabulary,
            options=decode.model_copy(update={"beam_width": training.dev_beam_width}),
            show=show,
            precision=self.stepper.precision,
            device=self.device,
        )
        return gather_result(share, self.vocabulary, self.plan.num_dev_pictures)

    def report(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Hand the epoch's values, and on rank 0 a checkpoint, to Ray."""
        metrics = {_metric_name(name): value for name, value in values.items()}
        metrics |= {"epoch": progress.epochs_done, "train_seconds": progress.train_seconds}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), self.stepper, progress, metrics)
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint(folder),
                checkpoint_dir_name=f"epoch_{progress.epochs_done:04d}",
            )

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
        )


def _load_encoder(plan: RunPlan) -> Encoder | None:
    """Return the encoder as the driver put it into the run's folder: a worker may not see where it came from."""
    if plan.cached:
        return None
    return load_encoder(plan.run_folder, plan.experiment.encoder, plan.encoder_sha256, "use another --name")


def _share(split: str, read: Callable[[Iterable[pa.Table]], Iterator[_Item]], feed: FeedPlan) -> Share[_Item]:
    return Share(ray.train.get_dataset_shard(split), read, resident=feed.resident)


def _idle_batch(feed: FeedPlan) -> CaptionBatch:
    shape = feed.shape if feed.crop_to is None else (feed.shape[0], feed.crop_to, feed.crop_to)
    return idle_batch(shape, torch.uint8 if feed.dtype == "|u1" else torch.float16)


class _Meter:
    """Counts what went through an epoch, over all workers, and says now and then how far it is."""

    def __init__(self, epoch: int, plan: RunPlan) -> None:
        self.epoch = epoch
        self.plan = plan
        self.num_words = 0
        self.num_captions = 0
        self.started = self.logged = time.monotonic()

    def add(self, counts: StepCounts) -> None:
        self.num_words += counts.num_words
        self.num_captions += counts.num_captions

    @property
    def share(self) -> float:
        """How much of the epoch's captions went through."""
        return min(self.num_captions / self.plan.num_train_captions, 1.0)

    @property
    def words_per_s(self) -> float:
        return self.num_words / (time.monotonic() - self.started)

    @property
    def captions_per_s(self) -> float:
        return self.num_captions / (time.monotonic() - self.started)

    def is_due(self) -> bool:
        """Tell, at most every ten seconds, that it is time for a line."""
        now = time.monotonic()
        if now - self.logged < _LOG_INTERVAL_S:
            return False
        self.logged = now
        return True

    def __str__(self) -> str:
        left = (time.monotonic() - self.started) * (1 / self.share - 1)
        return (
            f"epoch {self.epoch + 1} of {self.plan.experiment.training.epochs}: {self.share:.0%}, "
            f"{self.captions_per_s:,.0f} captions/s, {left:.0f} s left"
        )


def _metric_name(curve: str) -> str:
    """Return a curve's name as a metric: dev/bleu_4 is bleu_4, loss/train is train_loss."""
    group, _, name = curve.partition("/")
    return f"{name}_loss" if group == "loss" else name


def _dev_values(result: DevResult) -> dict[str, float]:
    scores = result.scores
    return {
        "loss/dev": result.loss,
        **{f"dev/{name}": getattr(scores, name) for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")},
        "dev/cider": scores.cider,
        "dev/rouge_l": scores.rouge_l,
        "dev/mean_words": scores.mean_words,
    }


def _summary(progress: Progress, epochs: int, values: Mapping[str, float]) -> str:
    return (
        f"epoch {progress.epochs_done} of {epochs}: loss {values['loss/train']:.3f}, "
        f"dev loss {values['loss/dev']:.3f}, BLEU-4 {values['dev/bleu_4']:.3f}, CIDEr {values['dev/cider']:.3f}, "
        f"{values['speed/captions_per_s']:,.0f} captions/s; best epoch {progress.best_epoch}"
    )

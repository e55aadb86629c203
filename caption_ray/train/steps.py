"""The parts of training that know tensors only: optimiser, one step, dev loss.

Ray, files and words are other modules' business. With one process `all_reduce` does nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from caption_ray.config import Experiment, Precision, TrainingConfig
from caption_ray.data.batches import CaptionBatch
from caption_ray.device import autocast
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.loss import attention_penalty, caption_loss
from caption_ray.train.agreement import all_agree, all_reduce, broadcast_weights, world_size
from caption_ray.train.averaging import MovingAverage, average_weights
from caption_ray.train.gradients import MAX_SKIPPED, GradientWatch, clip_gradients
from caption_ray.train.graphed import GraphedLoss, may_record
from caption_ray.train.neighbours import Neighbours
from caption_ray.train.optimizer import build_optimizer
from caption_ray.train.shared_weights import SharedWeights, share_weights


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one worker takes in a step, or all together."""

    num_words: int
    num_captions: int
    stop: bool = False
    """One of them was asked to stop, and all do so before this step."""

    @classmethod
    def of(cls, batch: CaptionBatch | None, stop: bool = False) -> "StepCounts":
        """Return what is in a worker's own batch; nothing where it has none left."""
        return cls(0, 0, stop) if batch is None else cls(batch.num_words, len(batch.lengths), stop)

    @classmethod
    def summed(cls, sums: Sequence[float]) -> "StepCounts":
        """Return what all take, of the sums of the three fields."""
        num_words, num_captions, num_stops = sums
        return cls(int(num_words), int(num_captions), num_stops > 0)


def counted(
    batches: Iterable[CaptionBatch],
    device: torch.device,
    is_asked: Callable[[], bool] = lambda: False,
    neighbours: Neighbours | None = None,
) -> Iterator[tuple[CaptionBatch | None, StepCounts]]:
    """Yield each step's batch and what all workers together take in it, until nobody has any left.

    is_asked: tells whether this worker was asked to stop; the step at which all hear of it is the last, and is not to
    be done.
    neighbours: who all workers are, where they share memory; they count when a step is asked for.

    Workers may have unequal numbers of batches: one that is through goes on with None. Each must go all the way, and
    ask for a step only when it is done with the last one: the counts of the next are on their way meanwhile, rather
    than have the workers wait for each other once more in every step. On GPUs they come when the step before the one
    that is under way has ended, since NCCL's sums wait for what was asked of the GPU earlier.
    """
    own = itertools.chain(batches, itertools.repeat(None))
    following = _begin_count(next(own), device, is_asked(), neighbours)
    while True:
        batch, finish = following
        counts = finish()
        if counts.num_words == 0:
            return
        if counts.stop:
            yield batch, counts
            return
        following = _begin_count(next(own), device, is_asked(), neighbours)
        yield batch, counts


def _begin_count(
    batch: CaptionBatch | None, device: torch.device, stop: bool, neighbours: Neighbours | None
) -> tuple[CaptionBatch | None, Callable[[], StepCounts]]:
    """Start to sum the counts of a batch over all workers; return it and what waits for the sums."""
    own = StepCounts.of(batch, stop)
    if world_size() == 1:
        return batch, lambda: own
    if neighbours is not None:
        return batch, lambda: StepCounts.summed(neighbours.sum(own.num_words, own.num_captions, own.stop))
    sums = torch.tensor((own.num_words, own.num_captions, own.stop), device=device)
    work = dist.all_reduce(sums, async_op=True)

    def finish() -> StepCounts:
        work.wait()
        return StepCounts.summed(sums.tolist())

    return batch, finish


@dataclass(kw_only=True)
class Stepper:
    """Does optimiser steps; `wrapped` is the model, or DDP around it.

    What optimiser and average are made of with `shared` update this worker's parts.
    """

    model: CaptionModel
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    settings: Experiment
    precision: Precision
    device: torch.device
    idle: CaptionBatch
    graphed: GraphedLoss | None = None
    """What computes loss and gradients in place of `wrapped`, on GPUs."""
    shared: SharedWeights | None = None
    """What sums up the gradients of all workers in place of DDP, and whose parts this worker updates."""
    watch: GradientWatch = field(default_factory=GradientWatch)

    @property
    def manner(self) -> str:
        """What a user may want to know of how steps are done, to follow other words; mostly empty."""
        if self.graphed is not None:
            return "; the first steps are recorded as CUDA graphs, which takes some seconds"
        return "" if self.shared is None else "; one copy of the weights, in memory that all share"

    def close(self) -> None:
        """Leave the other workers, after the last step."""
        if self.shared is not None:
            self.shared.neighbours.close()

    def counted(
        self, batches: Iterable[CaptionBatch], is_asked: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[CaptionBatch | None, StepCounts]]:
        """Yield batches and what all workers take in a step; see `counted`."""
        return counted(batches, self.device, is_asked, None if self.shared is None else self.shared.neighbours)

    def step(self, own: CaptionBatch | None, counts: StepCounts) -> Tensor:
        """Do one step and return this worker's loss sum, nats, and words, (2,); zeros where the loss is not finite.

        The loss is averaged over the words of all workers, not over workers: DDP averages gradients over workers,
        which the factor world_size undoes. A worker whose own data is used up (None) goes through the motions with
        the `idle` batch, counted as nothing, since the others wait for its gradients; with graphs it gives them zeros.
        Raises NonFiniteLossError where the gradient is not finite; under fp16 only after MAX_SKIPPED such steps, which
        the scaler skips to find a scale that works. On a GPU it does so a step later, or from `watch.settle`, with
        weights that are spoilt.
        """
        loss_sum, num_words = (self._graphed_loss if self.graphed else self._loss)(own, counts)
        self.scaler.unscale_(self.optimizer)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = None if self.shared is None else self.shared.sum_gradients()
        norm = clip_gradients(weights, self.settings.optimizer.max_grad_norm, norm)
        self.watch.add(norm, MAX_SKIPPED if self.precision == "fp16" else 0)  # alike on all workers
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.graphed is None:
            self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.shared is not None:
            self.shared.neighbours.wait()  # the next loss is that of all workers' parts
        totals = torch.stack((loss_sum.double(), torch.full_like(loss_sum, num_words, dtype=torch.float64)))
        return torch.where(torch.isfinite(loss_sum), totals, 0.0)

    def _loss(self, own: CaptionBatch | None, counts: StepCounts) -> tuple[Tensor, int]:
        """Compute the gradients, and return the loss sum and the words that it is of."""
        training = self.settings.training
        batch = (self.idle if own is None else own).to(self.device)
        weight = 0.0 if own is None else 1.0
        with autocast(self.precision, self.device):
            result = self.wrapped(batch.pictures, batch.ids, batch.lengths, batch.picture_index)
        targets = pack_steps(batch.ids[:, 1:], batch.lengths)
        loss_sum, num_words = caption_loss(result.logits, targets, training.label_smoothing)
        objective = loss_sum / counts.num_words
        if training.attention_penalty:
            penalty = attention_penalty(result.attention_sums) / counts.num_captions
            objective = objective + training.attention_penalty * penalty
        self.scaler.scale(objective * (weight if self.shared else weight * world_size())).backward()
        return loss_sum.detach() * weight, int(num_words * weight)

    def _graphed_loss(self, own: CaptionBatch | None, counts: StepCounts) -> tuple[Tensor, int]:
        """As `_loss`; the gradients of all workers are summed up here, which DDP does there."""
        assert self.graphed is not None
        if own is None:
            loss_sum = self.graphed.gradients.zero_().sum()
        else:
            penalty = self.settings.training.attention_penalty
            loss_sum = self.graphed(own, 1 / counts.num_words, penalty / counts.num_captions)
        all_reduce(self.graphed.gradients)
        return loss_sum, 0 if own is None else own.num_words


def build_stepper(
    model: CaptionModel,
    experiment: Experiment,
    precision: Precision,
    device: torch.device,
    idle: CaptionBatch,
    wrap: Callable[[CaptionModel], nn.Module],
) -> Stepper:
    """Return what does the steps of a model that lies on `device`; every worker must call it.

    wrap: puts DDP around the model, where its steps are not recorded as graphs and the workers do not share it.
    """
    scaler = make_scaler(precision, device)
    graphed: GraphedLoss | None = None
    if all_agree(may_record(model, device), device):
        broadcast_weights(model)
        groups = groups_per_worker(experiment.training, world_size())
        graphed = GraphedLoss(model, experiment.training, precision, device, groups, scaler.scale)
    shared = None if graphed else share_weights(model)
    return Stepper(
        model=model,
        wrapped=model if graphed or shared else wrap(model),
        optimizer=build_optimizer(model, experiment.optimizer, shared),
        scaler=scaler,
        average=average_weights(model, experiment.training.average_decay, shared),
        settings=experiment,
        precision=precision,
        device=device,
        idle=idle,
        graphed=graphed,
        shared=shared,
    )


def idle_batch(shape: tuple[int, ...], dtype: torch.dtype) -> CaptionBatch:
    """Return a batch of one word and one empty picture of `shape`, for workers without data (see Stepper.step)."""
    return CaptionBatch(
        pictures=torch.zeros((1, *shape), dtype=dtype),
        ids=torch.zeros((1, 2), dtype=torch.long),
        lengths=(1,),
        picture_index=torch.zeros(1, dtype=torch.long),
    )


@torch.no_grad()
def dev_loss(
    decoder: Decoder, features: Tensor, batch: CaptionBatch, precision: Precision, device: torch.device
) -> tuple[float, int]:
    """Return the summed cross-entropy, nats, and the words of a batch's captions, fed with their true words.

    features: (P, R, F), the encoder's of the batch's pictures.
    """
    batch = batch.to(device)
    with autocast(precision, device):
        result = decoder(features, batch.ids, batch.lengths, batch.picture_index)
    loss_sum, num_words = caption_loss(result.logits, pack_steps(batch.ids[:, 1:], batch.lengths))
    return float(loss_sum), num_words


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return the gradient scaler that fp16 needs; with other formats it passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def groups_per_worker(training: TrainingConfig, num_workers: int) -> int:
    """Return the picture groups that each of `num_workers` takes per step.

    Raises ValueError where the batch cannot be shared out evenly.
    """
    groups = training.batch_size // training.captions_per_picture
    if groups % num_workers:
        raise ValueError(
            f"training.batch_size: {training.batch_size} captions are {groups} pictures of "
            f"{training.captions_per_picture}, which {num_workers} workers cannot share evenly; make it a multiple "
            f"of {training.captions_per_picture * num_workers}"
        )
    return groups // num_workers

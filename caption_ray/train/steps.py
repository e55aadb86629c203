"""The parts of training that know tensors only: optimiser, one step, dev loss, averaged weights.

Ray, files and words are other modules' business. With one process `all_reduce` does nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from caption_ray.config import Experiment, OptimizerConfig, Precision, TrainingConfig
from caption_ray.data.batches import CaptionBatch
from caption_ray.device import autocast
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.loss import attention_penalty, caption_loss


def build_optimizer(model: CaptionModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over what trains: decoder matrices (with weight decay), other decoder weights, encoder stages.

    Each group keeps its peak rate under "peak"; `set_learning_rate` scales it.
    """
    decoder = [weight for weight in model.decoder.parameters() if weight.requires_grad]
    encoder = [weight for weight in (model.encoder or nn.Module()).parameters() if weight.requires_grad]
    groups = [
        (decoder_matrices := [weight for weight in decoder if weight.dim() > 1], config.learning_rate, True),
        ([weight for weight in decoder if weight.dim() <= 1], config.learning_rate, False),
        (encoder, config.encoder_learning_rate, True),
    ]
    assert decoder_matrices, "a decoder without matrices"
    return torch.optim.AdamW(
        [
            {"params": weights, "lr": rate, "peak": rate, "weight_decay": config.weight_decay if decayed else 0.0}
            for weights, rate, decayed in groups
            if weights
        ],
        betas=config.betas,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def average_weights(model: CaptionModel, decay: float) -> AveragedModel | None:
    """Return an exponential moving average of the weights, or None.

    At the n-th step the decay is min(`decay`, (1 + n) / (10 + n)): the first epochs' average would else be mostly the
    weights that training started from.
    """
    if decay == 0:
        return None

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        share = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
        for average, weight in zip(averaged, current, strict=True):
            average.lerp_(weight, 1 - share)

    return AveragedModel(model, multi_avg_fn=update)


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one worker takes in a step, or all together."""

    num_words: int
    num_captions: int

    @classmethod
    def of(cls, batch: CaptionBatch | None) -> "StepCounts":
        """Return what is in a worker's own batch; nothing where it has none left."""
        return cls(0, 0) if batch is None else cls(batch.num_words, len(batch.lengths))


def counted(batches: Iterable[CaptionBatch], device: torch.device) -> Iterator[tuple[CaptionBatch | None, StepCounts]]:
    """Yield each step's batch and what all workers together take in it, until nobody has any left.

    Workers may have unequal numbers of batches: one that is through goes on with None. Each must go all the way, and
    ask for a step only when it is done with the last one: the counts of the next are on their way meanwhile, rather
    than have the workers wait for each other once more in every step.
    """
    own = itertools.chain(batches, itertools.repeat(None))
    following = _begin_count(next(own), device)
    while True:
        batch, finish = following
        counts = finish()
        if counts.num_words == 0:
            return
        following = _begin_count(next(own), device)
        yield batch, counts


def _begin_count(
    batch: CaptionBatch | None, device: torch.device
) -> tuple[CaptionBatch | None, Callable[[], StepCounts]]:
    """Start to sum the counts of a batch over all workers; return it and what waits for the sums."""
    own = StepCounts.of(batch)
    if world_size() == 1:
        return batch, lambda: own
    sums = torch.tensor((own.num_words, own.num_captions), device=device)
    work = dist.all_reduce(sums, async_op=True)

    def finish() -> StepCounts:
        work.wait()
        return StepCounts(*sums.tolist())

    return batch, finish


def all_reduce(values: Tensor) -> None:
    """Sum `values` over all workers, in place."""
    if world_size() > 1:
        dist.all_reduce(values)


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


MAX_SKIPPED = 40
"""Steps in a row that fp16's scaler may skip; halved as often, its first scale would have come down to 6e-8."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(kw_only=True)
class Stepper:
    """Does optimiser steps; `wrapped` is the model, or DDP around it."""

    model: CaptionModel
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    settings: Experiment
    precision: Precision
    device: torch.device
    idle: CaptionBatch
    num_skipped: int = 0
    """Steps skipped by the scaler since the last one that was not."""

    def step(self, own: CaptionBatch | None, counts: StepCounts) -> Tensor:
        """Do one step and return this worker's loss sum, nats, and words, (2,); zeros where the loss is not finite.

        The loss is averaged over the words of all workers, not over workers: DDP averages gradients over workers,
        which the factor world_size undoes. A worker whose own data is used up (None) goes through the motions with
        the `idle` batch, counted as nothing, since the others wait for its gradients.
        Raises NonFiniteLossError where the gradient is not finite; under fp16 only after MAX_SKIPPED such steps, which
        the scaler skips to find a scale that works.
        """
        training = self.settings.training
        batch = (self.idle if own is None else own).to(self.device)
        weight = 0.0 if own is None else 1.0
        with autocast(self.precision, self.device):
            result = self.wrapped(batch.pictures, batch.ids, batch.lengths, batch.picture_index)
        targets = pack_steps(batch.ids[:, 1:], batch.lengths)
        loss_sum, _ = caption_loss(result.logits, targets, training.label_smoothing)
        objective = loss_sum / counts.num_words
        if training.attention_penalty:
            penalty = attention_penalty(result.attention_sums) / counts.num_captions
            objective = objective + training.attention_penalty * penalty
        self.scaler.scale(objective * (world_size() * weight)).backward()
        self.scaler.unscale_(self.optimizer)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = clip_gradients(weights, self.settings.optimizer.max_grad_norm)
        self.num_skipped = 0 if torch.isfinite(norm) else self.num_skipped + 1  # alike on all workers
        if self.num_skipped > (MAX_SKIPPED if self.precision == "fp16" else 0):
            raise NonFiniteLossError(
                "the gradient is not finite; lower optimizer.learning_rate, or train with training.precision=fp32"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        totals = torch.stack((loss_sum.detach().double(), loss_sum.new_tensor(targets.numel(), dtype=torch.float64)))
        return totals * weight if torch.isfinite(loss_sum) else torch.zeros_like(totals)


def clip_gradients(weights: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the weights' gradients down to `max_norm` together, and return the norm that they had.

    As `nn.utils.clip_grad_norm_`, which multiplies all of them by 1 where they are short enough.
    """
    norm = nn.utils.get_total_norm(weight.grad for weight in weights if weight.grad is not None)
    if not norm <= max_norm:
        nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    return norm


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

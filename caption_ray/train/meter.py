"""What an epoch's numbers are called, and how they are counted and told while it runs."""

import math
import time
from collections.abc import Mapping

from caption_ray.config import Precision
from caption_ray.train.dev import DevResult
from caption_ray.train.gradients import NonFiniteLossError
from caption_ray.train.setup import RunPlan
from caption_ray.train.state import Position, Progress
from caption_ray.train.steps import StepCounts

_LOG_INTERVAL_S = 10.0


class Meter:
    """Counts what went through an epoch, over all workers, and says now and then how far it is.

    start: how much of the epoch went through before this process.
    """

    def __init__(self, epoch: int, plan: RunPlan, start: Position) -> None:
        self.epoch = epoch
        self.plan = plan
        self.num_steps = start.num_steps
        self.num_words = start.num_words
        self.num_captions = start.num_captions
        self.started = self.logged = time.monotonic()
        self._start = start

    def add(self, counts: StepCounts) -> None:
        """Count a step."""
        if self.num_steps == self._start.num_steps:
            self.logged = time.monotonic()  # the first step may compile for longer than a line is due: no rate to tell
        self.num_steps += 1
        self.num_words += counts.num_words
        self.num_captions += counts.num_captions

    def position(self, num_workers: int, device: str, precision: Precision | None = None) -> Position:
        """Return where in the epoch its workers are."""
        return Position(
            num_steps=self.num_steps,
            num_words=self.num_words,
            num_captions=self.num_captions,
            num_workers=num_workers,
            device=device,
            precision=precision,
        )

    @property
    def share(self) -> float:
        """How much of the epoch's captions went through."""
        return min(self.num_captions / self.plan.num_train_captions, 1.0)

    @property
    def words_per_s(self) -> float:
        """Words a second since this process began with the epoch."""
        return (self.num_words - self._start.num_words) / (time.monotonic() - self.started)

    @property
    def captions_per_s(self) -> float:
        """Captions a second since this process began with the epoch."""
        return (self.num_captions - self._start.num_captions) / (time.monotonic() - self.started)

    def is_due(self) -> bool:
        """Tell, at most every ten seconds, that it is time for a line."""
        now = time.monotonic()
        if now - self.logged < _LOG_INTERVAL_S:
            return False
        self.logged = now
        return True

    def __str__(self) -> str:
        told = f"epoch {self.epoch + 1} of {self.plan.experiment.training.epochs}: {self.share:.0%}"
        speed = self.captions_per_s
        if speed == 0:
            return told
        left = max(self.plan.num_train_captions - self.num_captions, 0) / speed
        return f"{told}, {speed:,.0f} captions/s, {left:.0f} s left"


def metric_name(curve: str) -> str:
    """Return a curve's name as a metric: dev/bleu_4 is bleu_4, loss/train is train_loss."""
    group, _, name = curve.partition("/")
    return f"{name}_loss" if group == "loss" else name


def dev_values(result: DevResult) -> dict[str, float]:
    """Return the points of the curves that the dev split gives.

    Raises NonFiniteLossError where the loss is NaN or infinite: the weights are lost.
    """
    if not math.isfinite(result.loss):
        raise NonFiniteLossError("the dev loss is not finite; lower optimizer.learning_rate")
    scores = result.scores
    return {
        "loss/dev": result.loss,
        **{f"dev/{name}": getattr(scores, name) for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")},
        "dev/cider": scores.cider,
        "dev/rouge_l": scores.rouge_l,
        "dev/mean_words": scores.mean_words,
    }


def summary(progress: Progress, epochs: int, values: Mapping[str, float]) -> str:
    """Return the line that an epoch leaves in the log."""
    return (
        f"epoch {progress.epochs_done} of {epochs}: loss {values['loss/train']:.3f}, "
        f"dev loss {values['loss/dev']:.3f}, BLEU-4 {values['dev/bleu_4']:.3f}, CIDEr {values['dev/cider']:.3f}, "
        f"{values['speed/captions_per_s']:,.0f} captions/s; best epoch {progress.best_epoch}"
    )

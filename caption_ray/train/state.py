"""What a run must remember to go on as if it had never stopped.

A checkpoint is a folder with `state.pt` (tensors and numbers; loads with `weights_only`) and `progress.json`.
The encoder is in it only where it is fine-tuned; a frozen one comes from where it came from at the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch.optim.swa_utils import AveragedModel

from caption_ray.config import Precision, Settings
from caption_ray.errors import RunError
from caption_ray.model.caption_model import CaptionModel
from caption_ray.train.steps import Stepper

STATE_NAME = "state.pt"
PROGRESS_NAME = "progress.json"


class Progress(Settings):
    """How far a run has come, after a whole number of epochs."""

    epochs_done: int = Field(0, ge=0, description="Finished passes over the training captions.")
    best_score: float | None = Field(None, description="Best dev score so far, of `training.select_by`.")
    best_epoch: int = Field(0, ge=0, description="Epoch that reached it, counted from 1.")
    train_seconds: float = Field(0.0, ge=0, description="Time spent in epochs, dev decoding included, seconds.")

    def after_epoch(self, score: float, seconds: float) -> "Progress":
        """Return the progress after one more epoch that reached `score` on dev."""
        done = self.epochs_done + 1
        better = self.best_score is None or score > self.best_score
        return Progress(
            epochs_done=done,
            best_score=score if better else self.best_score,
            best_epoch=done if better else self.best_epoch,
            train_seconds=self.train_seconds + seconds,
        )

    @property
    def rank(self) -> int:
        """The last epoch's place among all, for choosing the best: its number where no earlier one was as good, else 0.

        Scores themselves would not do: of equal ones Ray Train keeps the last, and what is said of the best epoch would
        be another's.
        """
        return self.epochs_done if self.best_epoch == self.epochs_done else 0

    def is_over(self, epochs: int, patience: int) -> bool:
        """Tell whether the run has done its epochs, or gone `patience` epochs without a better score."""
        return self.epochs_done >= epochs or (
            patience > 0 and self.best_epoch > 0 and self.epochs_done - self.best_epoch >= patience
        )


class Position(Settings):
    """How far a run has come in an epoch; it goes on from there with as many workers that compute alike alone."""

    num_steps: int = Field(0, ge=0, description="Optimiser steps done.")
    num_words: int = Field(0, ge=0, description="Words trained on, over all workers.")
    num_captions: int = Field(0, ge=0, description="Captions trained on, over all workers.")
    num_workers: int = Field(1, ge=1, description="Workers that the epoch's pictures are dealt out to.")
    device: str | None = Field(
        None, description="Kind of device that they compute on; another one draws other numbers."
    )
    precision: Precision | None = Field(None, description="Number format that they compute in; None as it was untold.")


class CheckpointRecord(Settings):
    """What a checkpoint says of itself, in `progress.json`."""

    progress: Progress
    metrics: dict[str, float] = Field(description="Loss, dev scores and speed of its last epoch.")
    state_bytes: int = Field(description="Size of `state.pt`; a copy that was cut off has another.")
    position: Position | None = Field(None, description="Where in the next epoch it was taken; None before it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What one worker alone knows in the midst of an epoch."""

    totals: torch.Tensor
    """Loss sum and words so far, (2,)."""
    random: torch.Tensor
    """State of the generator that dropout draws from."""

    @classmethod
    def take(cls, totals: torch.Tensor) -> "WorkerState":
        """Return this worker's."""
        random = torch.cuda.get_rng_state() if totals.is_cuda else torch.get_rng_state()
        return cls(totals=totals.cpu(), random=random)

    def restore(self, totals: torch.Tensor) -> None:
        """Have the worker be as it was, its totals in `totals`."""
        totals.copy_(self.totals)
        if totals.is_cuda:
            torch.cuda.set_rng_state(self.random)
        else:
            torch.set_rng_state(self.random)


def save_state(
    folder: Path,
    stepper: Stepper,
    progress: Progress,
    metrics: Mapping[str, float],
    position: Position | None = None,
    workers: Sequence[WorkerState] = (),
) -> None:
    """Write a checkpoint into an existing folder; in the midst of an epoch with the states of its workers."""
    average = stepper.average
    torch.save(
        {
            "model": _trained(stepper.model),
            "average": None if average is None else _trained(average.module),
            "num_averaged": 0 if average is None else int(average.n_averaged),
            "optimizer": stepper.optimizer.state_dict(),
            "scaler": stepper.scaler.state_dict(),
            "workers": [{"totals": worker.totals, "random": worker.random} for worker in workers],
        },
        folder / STATE_NAME,
    )
    record = CheckpointRecord(
        progress=progress,
        metrics=dict(metrics),
        state_bytes=(folder / STATE_NAME).stat().st_size,
        position=position,
    )
    (folder / PROGRESS_NAME).write_text(record.model_dump_json(indent=1))


def load_state(folder: Path, stepper: Stepper) -> Progress:
    """Put a checkpoint's weights and optimiser state into `stepper`. Raises RunError where they do not fit."""
    state = torch.load(folder / STATE_NAME, map_location=stepper.device, weights_only=True)
    try:
        load_weights(stepper.model, state["model"])
        if stepper.average is not None:
            load_weights(stepper.average.module, state["average"] or state["model"])
            stepper.average.n_averaged.fill_(state["num_averaged"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run began without one, on other hardware
            stepper.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{folder}: a checkpoint of another model: {error}; use another --name") from error
    return CheckpointRecord.model_validate_json((folder / PROGRESS_NAME).read_bytes()).progress


def load_worker_state(folder: Path, rank: int) -> WorkerState:
    """Return what a worker alone knew, of a checkpoint in the midst of an epoch."""
    state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
    return WorkerState(**state["workers"][rank])


def load_best_weights(folder: Path, model: CaptionModel) -> None:
    """Put a checkpoint's weights, the averaged ones where there are any, into `model`."""
    state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
    load_weights(model, state["average"] or state["model"])


def load_weights(model: CaptionModel | torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load a checkpoint's weights; only those of a frozen encoder may be absent from it."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [name for name in missing if not name.startswith("encoder.")] + list(unexpected)
    if wrong:
        raise RuntimeError(f"weights do not fit: {', '.join(wrong[:5])}")


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    trained = any(p.requires_grad for name, p in model.named_parameters() if name.startswith("encoder."))
    return {name: value for name, value in model.state_dict().items() if trained or not name.startswith("encoder.")}


def evaluated_model(stepper: Stepper) -> CaptionModel:
    """Return the model to decode with: the averaged one where there is one."""
    average: AveragedModel | None = stepper.average
    return stepper.model if average is None else average.module  # type: ignore[return-value]

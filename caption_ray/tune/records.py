"""What a sweep keeps on storage: what it was started with, and how each trial went, epoch by epoch.

    sweep.json              what is swept, on which data   report.html, leaderboard.md  how it ended
    trials/0007/            a training run like any other  best/                        the winner's bundle
    trials/0007/trial.json  its settings and scores        tune/                        Ray Tune's, with TensorBoard

A trial's record is written whole after each of its epochs. A sweep that was killed goes on from these records alone:
Ray's own snapshot is up to ten seconds old, is a pickle, can be cut off, and knows nothing of what the scheduler saw.
"""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationError

from caption_ray import storage
from caption_ray.config import Experiment, Settings
from caption_ray.errors import RunError
from caption_ray.tune.space import SearchSpace, Value

RECORD_NAME = "sweep.json"
TRIAL_RECORD_NAME = "trial.json"

Status = Literal["running", "finished", "stopped", "failed"]


class StoppingConfig(Settings):
    """When a trial is stopped early: asynchronous successive halving (Li et al. 2020, ASHA)."""

    early: bool = Field(True, description="Stop trials early; else all run to their end.")
    grace_epochs: int = Field(2, ge=1, description="Epochs that every trial is given.")
    reduction: int = Field(
        3, ge=2, description="Of the trials that reach a rung (grace, then times this), one in so many goes on."
    )

    def may_stop(self, max_epochs: int) -> bool:
        """Tell whether a trial of so many epochs can be stopped before its end."""
        return self.early and self.grace_epochs < max_epochs


class SweepRecord(Settings):
    """What a sweep was started with; a sweep of that name goes on only with the same."""

    format_version: int = 1
    preset: str = Field(description="Name of the preset that the experiment comes from.")
    experiment: Experiment = Field(description="What all trials have in common.")
    space: SearchSpace
    search: Literal["random", "optuna"]
    stopping: StoppingConfig
    seed: int
    data_digest: str = Field(description="Digest of the prepared data set.")
    vocabulary_sha256: str = Field(description="Digest of its vocabulary.")
    features_key: str = Field(description="Key of the feature cache.")


class TrialRecord(Settings):
    """One trial: its settings by path, and what each epoch reported."""

    number: int = Field(ge=1)
    settings: dict[str, Value]
    status: Status = "running"
    epochs: tuple[dict[str, float], ...] = Field((), description="Metrics after each epoch; `epoch` counts from 1.")
    num_retries: int = Field(0, ge=0, description="Times that it was started again after a failure.")
    num_starts: int = Field(0, ge=0, description="Starts since its last new epoch.")
    caption_ray_version: str | None = Field(None, description="Version that it was last started with.")
    commits: tuple[str, ...] = Field((), description="Commits of the code that it was started with, in order.")
    error: str | None = Field(None, description="Why it failed, where it did.")
    has_diverged: bool = Field(False, description="It failed by its settings: its numbers were finite no more.")

    @property
    def is_over(self) -> bool:
        """It is not to be run any further."""
        return self.status != "running"

    def scores(self, metric: str) -> dict[int, float]:
        """Return the dev score after each epoch that has one, which is a number."""
        scores = {int(epoch["epoch"]): epoch.get(metric, math.nan) for epoch in self.epochs}
        return {epoch: score for epoch, score in scores.items() if math.isfinite(score)}

    def best(self, metric: str) -> tuple[float, int] | None:
        """Return the best dev score and its epoch, the earliest of equal ones; None before the first."""
        scores = self.scores(metric)
        if not scores:
            return None
        epoch = max(scores, key=lambda at: (scores[at], -at))
        return scores[epoch], epoch

    def after_epoch(self, metrics: dict[str, float]) -> "TrialRecord":
        """Return the record with one more epoch, which takes the place of earlier reports of it and of those after it.

        Nothing changes where it is known word for word, as it is when a run says again what it ended with.
        """
        if metrics in self.epochs:
            return self
        earlier = [epoch for epoch in self.epochs if epoch["epoch"] < metrics["epoch"]]
        is_new = len(earlier) == len(self.epochs)
        return self.model_copy(
            update={"epochs": (*earlier, metrics), "num_starts": 0 if is_new else self.num_starts},
        )

    def with_lacking(self, epochs: Iterable[dict[str, float]]) -> "TrialRecord":
        """Return the record with those of the epochs besides that it does not have yet, and none changed."""
        known = {epoch["epoch"] for epoch in self.epochs}
        lacking = [epoch for epoch in epochs if epoch["epoch"] not in known]
        if not lacking:
            return self
        found = sorted((*self.epochs, *lacking), key=lambda epoch: epoch["epoch"])
        return self.model_copy(update={"epochs": tuple(found)})


def trials_folder(sweep_folder: str) -> str:
    """Return where a sweep's training runs lie."""
    return storage.join(sweep_folder, "trials")


def trial_name(number: int) -> str:
    """Return the name of a trial's run."""
    return f"{number:04d}"


def write_trial(sweep_folder: str, record: TrialRecord) -> None:
    """Write a trial's record beside its run."""
    path = storage.join(trials_folder(sweep_folder), trial_name(record.number), TRIAL_RECORD_NAME)
    storage.write_text(path, record.model_dump_json())


def unfail(sweep_folder: str, records: dict[int, TrialRecord]) -> dict[int, TrialRecord]:
    """Return the records, those of failed trials as if these were still to go on."""
    again = {"status": "running", "num_starts": 0, "error": None, "has_diverged": False}
    failed = [record for record in records.values() if record.status == "failed"]
    return _with_changed(sweep_folder, records, [record.model_copy(update=again) for record in failed])


def fail_hopeless(sweep_folder: str, records: dict[int, TrialRecord], max_retries: int) -> dict[int, TrialRecord]:
    """Return the records, those as failed whose trials took the sweep with them as often as a trial may be started."""
    failed = []
    for record in records.values():
        if not record.is_over and record.num_starts > max_retries:
            error = f"it was started {record.num_starts} times without coming to the end of an epoch"
            failed.append(record.model_copy(update={"status": "failed", "error": error}))
    return _with_changed(sweep_folder, records, failed)


def _with_changed(
    sweep_folder: str, records: dict[int, TrialRecord], changed: Iterable[TrialRecord]
) -> dict[int, TrialRecord]:
    """Write the records that have changed, and return all."""
    found = dict(records)
    for record in changed:
        found[record.number] = record
        write_trial(sweep_folder, record)
    return found


def read_trials(sweep_folder: str) -> dict[int, TrialRecord]:
    """Return all trials' records by number.

    Raises RunError for one that cannot be read: were it left out, another trial would be given its number and folder.
    """
    folder, records = trials_folder(sweep_folder), {}
    for name in storage.list_files(folder):
        if name.count("/") != 1 or not name.endswith(f"/{TRIAL_RECORD_NAME}"):
            continue
        path = storage.join(folder, name)
        try:
            record = TrialRecord.model_validate_json(storage.read_bytes(path))
        except ValidationError as error:
            raise RunError(
                f"{path}: not a trial's record that this version of caption_ray reads ({error.errors()[0]['msg']}); "
                "restore it, or delete its folder for the sweep to do without that trial"
            ) from error
        records[record.number] = record
    return dict(sorted(records.items()))

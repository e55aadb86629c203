"""What a sweep is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from caption_ray import storage
from caption_ray.config import Experiment
from caption_ray.train.trainer import TrainRequest
from caption_ray.tune.records import StoppingConfig, TrialRecord, trial_name, trials_folder
from caption_ray.tune.space import SearchSpace, Value, settings_of, with_settings
from caption_ray.tune.table import Standing, rank, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """What to sweep, on what, and how."""

    preset_name: str
    preset: Experiment
    experiment: Experiment
    space: SearchSpace
    data: str
    features: str
    storage: str
    name: str
    num_trials: int
    search: Literal["random", "optuna"] = "optuna"
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    seed: int = 0
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.25
    memory_per_trial_gb: float | None = None
    num_at_once: int | None = None
    max_retries: int = 1
    retry_failed: bool = False
    """Trials that have failed are to go on after all."""

    @property
    def folder(self) -> str:
        """STORAGE/NAME, absolute."""
        return storage.join(storage.absolute(self.storage), self.name)

    @property
    def base(self) -> TrainRequest:
        """The training run with the settings that all trials have in common."""
        return TrainRequest(
            experiment=self.experiment,
            preset=self.preset,
            data=storage.absolute(self.data),
            features=storage.absolute(self.features),
            storage=trials_folder(self.folder),
            name="",
            device=self.device,
        )

    @property
    def metric(self) -> str:
        """The dev score that trials are compared by."""
        return self.experiment.training.select_by

    def num_left(self, records: Mapping[int, TrialRecord]) -> int:
        """Return how many trials are still to be run: those that were begun too, where they are more than asked for."""
        return max(self.num_trials, len(records)) - sum(record.is_over for record in records.values())

    def rank(self, records: Mapping[int, TrialRecord]) -> list[Standing]:
        """Return the trials from best to worst."""
        return rank(records.values(), self.metric, settings_of(self.experiment))

    def summary(self, records: Mapping[int, TrialRecord]) -> str:
        """Return one line on how far the sweep is."""
        return summary(self.name, list(records.values()), max(self.num_trials, len(records)), self.metric)


def trial_request(base: TrainRequest, number: int, settings: Mapping[str, Value]) -> TrainRequest:
    """Return what to train for a trial. base: a run with the settings that all trials have in common."""
    return replace(base, experiment=with_settings(base.experiment, settings), name=trial_name(number))

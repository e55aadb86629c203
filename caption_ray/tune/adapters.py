"""What Ray Tune asks while a sweep runs, answered from the sweep's own search and records."""

import logging
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import ray.tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

import caption_ray
from caption_ray import storage
from caption_ray.errors import DivergedError
from caption_ray.lineage import code_commit
from caption_ray.train.run_folder import RANK, is_finished, whole_checkpoints
from caption_ray.train.stopping import StopWatch
from caption_ray.tune.records import (
    StoppingConfig,
    SweepRecord,
    TrialRecord,
    trial_name,
    trials_folder,
    write_trial,
)
from caption_ray.tune.search import TrialSearch
from caption_ray.tune.space import Value, settings_of
from caption_ray.tune.table import live_table, rank, summary

logger = logging.getLogger(__name__)

NUMBER = "trial"
"""Key under which a trial finds its own number among its settings."""

_TABLE_INTERVAL_S = 10.0


class SweepSearcher(Searcher):  # type: ignore[misc]
    """Hands out the trials that are still to be run: those that were cut off first, with the settings they had.

    records: of all trials so far, by number.  preset: settings of the first trial, where they lie in the space.
    """

    def __init__(
        self, search: TrialSearch, records: dict[int, TrialRecord], preset: Mapping[str, Value] | None
    ) -> None:
        super().__init__()
        self._search = search
        self._again = {number: record.settings for number, record in records.items() if not record.is_over}
        self._preset = preset
        self._last = max(records, default=0)
        for record in records.values():
            if record.is_over:
                search.tell(record)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002 - the signature is Ray's
        """Take nothing over: the search knows what it searches."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:  # noqa: ARG002 - a trial goes by its number here
        """Return the next trial's settings, and its number."""
        if self._again:
            number = min(self._again)
            settings = self._search.suggest(number, self._again.pop(number))
        else:
            number = self._last = self._last + 1
            settings = self._search.suggest(number, self._preset if number == 1 else None)
        return {NUMBER: number, **settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: SweepWatch, which is told a moment later, knows how the trial ended and tells the search."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trials' own records are what a sweep goes on from."""


def build_scheduler(
    stopping: StoppingConfig, metric: str, max_epochs: int, records: Iterable[TrialRecord]
) -> TrialScheduler:
    """Return what stops trials early, knowing what each had reached at each rung, those that go on among them.

    Ray's own way of going on with a sweep (Tuner.restore, 2.60) begins with empty rungs, so that the first trials after
    it are compared with nothing and go on however bad they are.
    """
    if not stopping.may_stop(max_epochs):
        return FIFOScheduler()
    scheduler = _Halving(
        time_attr="epoch",  # not training_iteration, which begins anew when a trial does
        metric=metric,
        mode="max",
        max_t=max_epochs - 1,  # no rung at the last epoch, when a trial ends by itself and writes its bundle
        grace_period=stopping.grace_epochs,
        reduction_factor=stopping.reduction,
        stop_last_trials=False,
    )
    for record in records:
        recorded = SimpleNamespace(config={NUMBER: record.number})
        scheduler.on_trial_add(None, recorded)
        for epoch, score in record.scores(metric).items():
            scheduler.on_trial_result(None, recorded, {"epoch": epoch, metric: score})  # decided when it was reported
    return scheduler


class _Halving(ASHAScheduler):  # type: ignore[misc]
    """ASHA that knows trials by their numbers: Tune's own names for them are new whenever the sweep is started."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _by_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, _by_number(trial), result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _by_number(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _by_number(trial))


def _by_number(trial: Any) -> SimpleNamespace:
    """Return all that the scheduler asks of a trial."""
    return SimpleNamespace(trial_id=trial.config[NUMBER])


class SweepWatch(ray.tune.Callback):  # type: ignore[misc]
    """Writes each trial's record after each of its epochs, tells the search how it ended, and shows how all stand."""

    def __init__(
        self,
        search: TrialSearch,
        sweep: SweepRecord,
        records: Mapping[int, TrialRecord],
        *,
        name: str,
        folder: str,
        num_trials: int,
        max_retries: int,
        stop_watch: StopWatch,
    ) -> None:
        self._search = search
        self._name = name
        self._folder = folder
        self._records = dict(records)
        self._num_trials = num_trials
        self._max_retries = max_retries
        self._stop_watch = stop_watch
        self._is_stopping = False
        self._commit = code_commit()
        self._started: set[int] = set()
        self._metric = sweep.experiment.training.select_by
        self._searched = sweep.space.searched
        self._preset = settings_of(sweep.experiment)
        self._shown_at = float("-inf")
        self._saved: dict[int, list[dict[str, float]]] = {}  # of trials that have not reported since they were started
        self._on_user_signal = signal.getsignal(signal.SIGUSR1)

    def setup(self, **info: Any) -> None:  # noqa: ARG002
        """Have SIGUSR1 do what it did before the sweep: Tune has just made it another Ctrl-C (2.60)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._on_user_signal)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        """End the sweep where it is asked to, as Ctrl-C would: Tune has no other way that leaves trials as they are."""
        if not self._is_stopping and self._stop_watch.is_asked():
            self._is_stopping = True
            logger.info("asked to stop: the trials that are running will go on from their last epochs")
            signal.raise_signal(signal.SIGINT)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Record a new trial, or one that is started again.

        Tune counts failures from 0 whenever the sweep is started; it is told how many are left.
        """
        number, settings = trial.config[NUMBER], dict(trial.config)
        del settings[NUMBER]
        self._started.add(number)
        record = self._records.get(number) or TrialRecord(number=number, settings=settings)
        self._saved[number] = saved_epochs(self._folder, number)
        started: dict[str, object] = {"status": "running", "num_starts": record.num_starts + 1}
        started["caption_ray_version"] = caption_ray.__version__
        if self._commit is not None and self._commit not in record.commits:
            started["commits"] = (*record.commits, self._commit)
        if trial.num_failures:
            started["num_retries"] = record.num_retries + 1
            logger.warning("trial %d failed and is started again: %s", number, failure_of(trial))
        else:
            trial.max_failures = self._max_retries - record.num_starts
        self._put(record.model_copy(update=started))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        """Do not hold it against the trials that were running that the sweep was stopped."""
        for record in [self._records[number] for number in self._started]:
            if not record.is_over and record.num_starts:
                self._put(record.model_copy(update={"num_starts": record.num_starts - 1}))

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Record an epoch, at once with the scheduler's decision, so that a kill cannot come between the two."""
        record = self._records[trial.config[NUMBER]]
        if "epoch" in result:
            metrics = _ours(result)
            # What Tune's loggers, which come after this, count as steps: its own count begins anew when a trial does.
            result["timesteps_total"] = int(metrics["epoch"])
            update = {"status": "stopped"} if result.get("done") else {}
            # What a kill kept from being reported. Earlier, the scheduler would be told of it as of what was decided.
            unreported = [epoch for epoch in self._saved.pop(record.number, ()) if epoch["epoch"] < metrics["epoch"]]
            self._put(record.with_lacking(unreported).after_epoch(metrics).model_copy(update=update))
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Record how a trial ended: one that was stopped early has not written its bundle."""
        record = self._records[trial.config[NUMBER]]
        run = storage.join(trials_folder(self._folder), trial_name(record.number))
        record = record.with_lacking(self._saved.pop(record.number, ()))  # the last may never have been reported
        self._end(record.model_copy(update={"status": "finished" if is_finished(run) else "stopped"}))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Record a trial that failed more often than it is retried; the sweep goes on without it."""
        record = self._records[trial.config[NUMBER]]
        has_diverged = DivergedError.__name__ in str(trial.get_error())
        failed = record.model_copy(
            update={"status": "failed", "error": failure_of(trial), "has_diverged": has_diverged}
        )
        logger.error("trial %d failed: %s", failed.number, failed.error)
        self._end(failed)

    def _end(self, record: TrialRecord) -> None:
        self._put(record)
        self._search.tell(record)
        self._show(at_once=True)

    def _put(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        write_trial(self._folder, record)

    def _show(self, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._shown_at < _TABLE_INTERVAL_S:
            return
        self._shown_at = time.monotonic()
        standings = rank(self._records.values(), self._metric, self._preset)
        line = summary(self._name, list(self._records.values()), self._num_trials, self._metric)
        logger.info("%s\n%s", line, live_table(standings, self._metric, self._searched))


def saved_epochs(sweep_folder: str, number: int) -> list[dict[str, float]]:
    """Return the metrics of a trial's epochs of which there is a checkpoint, reported or not."""
    run = storage.join(trials_folder(sweep_folder), trial_name(number))
    return [_ours(checkpoint.metrics) for checkpoint in whole_checkpoints(run).values()]


def failure_of(trial: Trial) -> str:
    """Return the last line of what a trial failed with, without the exception's module."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    reason = next((line for line in lines[::-1] if "Error: " in line), lines[-1] if lines else "it is not known why")
    return reason.rpartition("Error: ")[2] if "Error: " in reason else reason


def _ours(told: Mapping[str, Any]) -> dict[str, float]:
    """Return a training run's own metrics, without what Ray is told beside them, and what Tune adds."""
    added = (RANK, "time", "pid", "done", "iterations_since_restore", "training_iteration", "timestamp")
    return {
        name: float(value)
        for name, value in told.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith(added)
    }

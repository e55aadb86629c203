"""Which settings to try next, and which of them mattered; by Optuna, without Ray.

Each suggestion is drawn with a seed of its own, from the sweep's seed and the trial's number: a sweep that was killed
goes on with the trials that it would have had.
"""

import itertools
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from caption_ray.tune.records import TrialRecord
from caption_ray.tune.space import LOGARITHMIC, SearchSpace, Value

_STARTUP_TRIALS = 6
"""Trials at random before Optuna's sampler builds on them; ten, its default, is most of a small sweep."""

_MAX_DRAWS = 20
"""Draws of the sampler's for settings that no trial has had; after them, by lot among those that are left."""

MIN_TRIALS_FOR_IMPORTANCE = 4
_NUM_LOTS = 50


class TrialSearch:
    """Suggests settings. A trial whose end is told counts; of one still running the place is avoided."""

    def __init__(self, space: SearchSpace, method: Literal["random", "optuna"], metric: str, seed: int) -> None:
        _quieten()
        self._space = space
        self._method = method
        self._metric = metric
        self._seed = seed
        self._distributions = distributions(space)
        self._study = optuna.create_study(direction="maximize")
        self._running: dict[int, optuna.trial.Trial] = {}
        self._suggested: set[tuple[Value, ...]] = set()

    def suggest(self, number: int, settings: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """Return the settings of trial `number`; those given, where it is known what they are.

        Where only choices are searched, none are suggested twice before all have been.
        """
        self._study.sampler = self._sampler(number)
        if settings is None:
            trial = self._draw(number)
            found = {path: _tidy(value, self._space.ranges.get(path)) for path, value in trial.params.items()}
            settings = {**self._space.fixed, **found}
        else:
            trial = self._ask_for(settings)
        self._running[number] = trial
        self._suggested.add(tuple(settings[path] for path in self._distributions))
        return dict(settings)

    def tell(self, record: TrialRecord) -> None:
        """Take in how a trial ended, whether it was suggested here or in an earlier life of the sweep."""
        trial = self._running.pop(record.number, None)
        if trial is None:
            self.suggest(record.number, record.settings)
            trial = self._running.pop(record.number)
        best = record.best(self._metric)
        if record.has_diverged:
            # Without a score it ranks after all others, and its neighbourhood is avoided.
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif best is None or record.status == "failed":
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif record.status == "stopped":
            # Optuna ranks a stopped trial after those that went further, whatever it had reached.
            for epoch, score in record.scores(self._metric).items():
                trial.report(score, epoch)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, best[0])

    def _draw(self, number: int) -> optuna.trial.Trial:
        """Return a trial with settings of the sampler's, or by lot where it keeps to those that have been suggested."""
        left = self._combinations_left()
        for _ in range(_MAX_DRAWS):
            trial = self._study.ask(self._distributions)
            if not left or trial.params in left:
                return trial
            # To the sampler it is then as if it had never been drawn, as it is after the sweep was cut off.
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return self._ask_for(left[np.random.default_rng((self._seed, number)).integers(len(left))])

    def _ask_for(self, settings: Mapping[str, Value]) -> optuna.trial.Trial:
        """Return a trial with these settings."""
        self._study.enqueue_trial({path: settings[path] for path in self._distributions})
        return self._study.ask(self._distributions)

    def _combinations_left(self) -> list[dict[str, Value]]:
        """Return what is searched of those settings that no trial has had; none where a range is searched."""
        if self._space.num_combinations is None:
            return []
        combinations = itertools.product(*(self._space.choices[path] for path in self._distributions))
        left = [values for values in combinations if values not in self._suggested]
        return [dict(zip(self._distributions, values, strict=True)) for values in left]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        if self._method == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=_STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed
            )


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return what is searched, in Optuna's terms."""
    found: dict[str, BaseDistribution] = {}
    for path in space.searched:
        if path in space.choices:
            found[path] = CategoricalDistribution(space.choices[path])
        else:
            low, high = space.ranges[path]
            found[path] = FloatDistribution(low, high, log=path in LOGARITHMIC)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How much a setting had to do with a trial being among the better half; all shares sum to 1."""

    path: str
    share: float
    chance: float
    """What the share comes to, in one case of ten, where the same scores fall to the trials by lot."""


def importances(records: Iterable[TrialRecord], space: SearchSpace, metric: str) -> list[Importance]:
    """Return the importance of each searched setting, the most important first.

    PED-ANOVA (Watanabe et al. 2023), since it goes by the trials' order alone: a trial that was stopped early has a
    lower best score than it would have come to, but it is among the worse ones all the same. Empty for under four
    trials, or where nothing told them apart.
    """
    known = distributions(space)
    scored = [(record, best[0]) for record in records if (best := record.best(metric)) and space.has(record.settings)]
    if not known or len(scored) < MIN_TRIALS_FOR_IMPORTANCE:
        return []
    params = [{path: record.settings[path] for path in known} for record, _ in scored]
    scores = np.array([score for _, score in scored])
    if np.ptp(scores) == 0:
        return []
    found = _ped_anova(params, known, scores)
    generator = np.random.default_rng(0)
    by_lot = [_ped_anova(params, known, generator.permutation(scores)) for _ in range(_NUM_LOTS)]
    if not found:
        return []
    return [
        Importance(path=path, share=share, chance=float(np.quantile([lot.get(path, 0.0) for lot in by_lot], 0.9)))
        for path, share in sorted(found.items(), key=lambda pair: -pair[1])
    ]


def _ped_anova(
    params: Sequence[dict[str, Value]], known: dict[str, BaseDistribution], scores: NDArray[np.float64]
) -> dict[str, float]:
    _quieten()
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(values), distributions=known, value=float(score))
            for values, score in zip(params, scores, strict=True)
        ]
    )
    with warnings.catch_warnings():
        # It warns of being experimental, and of equal scores, where the better half is more than half.
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found if sum(found.values()) > 0 and all(map(np.isfinite, found.values())) else {}


def _quieten() -> None:
    """Silence Optuna's line for every study; not at import, which is to do nothing."""
    logging.getLogger("optuna").setLevel(logging.WARNING)


def _tidy(value: Value, within: tuple[float, float] | None) -> Value:
    """Round a number from a range to three digits, for people to read and for commands to repeat."""
    if within is None:
        return value
    return min(max(float(f"{value:.3g}"), within[0]), within[1])

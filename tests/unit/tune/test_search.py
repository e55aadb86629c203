import math
from typing import Literal

import pytest
from trials import SPACE, settings, trial

from caption_ray.tune.records import TrialRecord
from caption_ray.tune.search import TrialSearch, importances

Method = Literal["random", "optuna"]


def score_of(rate: float) -> float:
    """Return a score that peaks at a learning rate of 1e-3, a decade away from either end of SPACE's."""
    return 1 - abs(math.log10(rate) + 3)


def run(search: TrialSearch, numbers: range) -> list[TrialRecord]:
    records = []
    for number in numbers:
        found = search.suggest(number)
        score = score_of(found["optimizer.learning_rate"])
        status = "stopped" if score < 0.3 else "finished"
        record = trial(number, score, status=status).model_copy(update={"settings": found})
        search.tell(record)
        records.append(record)
    return records


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_suggestions_lie_in_the_space_and_differ(method: Method) -> None:
    records = run(TrialSearch(SPACE, method, "cider", seed=0), range(1, 21))
    assert all(SPACE.has(record.settings) for record in records)
    assert all(record.settings.keys() == settings().keys() for record in records)
    assert len({tuple(record.settings.values()) for record in records}) == 20
    rates = [record.settings["optimizer.learning_rate"] for record in records]
    assert all(rate == float(f"{rate:.3g}") for rate in rates)


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_search_that_was_cut_off_goes_on_with_the_same_trials(method: Method) -> None:
    undisturbed = run(TrialSearch(SPACE, method, "cider", seed=3), range(1, 13))
    search = TrialSearch(SPACE, method, "cider", seed=3)
    for record in undisturbed[:8]:
        search.tell(record)
    assert run(search, range(9, 13)) == undisturbed[8:]


def test_another_seed_has_other_trials() -> None:
    first, second = (run(TrialSearch(SPACE, "random", "cider", seed), range(1, 4)) for seed in (0, 1))
    assert first != second


def test_known_settings_are_taken_as_they_are() -> None:
    search = TrialSearch(SPACE, "optuna", "cider", seed=0)
    assert search.suggest(1, settings(rate=0.00123456)) == settings(rate=0.00123456)
    search.tell(trial(1, 0.5, rate=0.00123456))


def test_optuna_tries_more_near_the_best_than_chance_does() -> None:
    def near(method: Method) -> int:
        records = run(TrialSearch(SPACE, method, "cider", seed=0), range(1, 41))[10:]
        return sum(score_of(record.settings["optimizer.learning_rate"]) > 0.8 for record in records)

    assert near("optuna") > 2 * near("random")


def test_failed_trial_counts_as_nothing() -> None:
    search = TrialSearch(SPACE, "optuna", "cider", seed=0)
    for number in range(1, 9):
        search.suggest(number)
        search.tell(trial(number, status="failed"))
    assert SPACE.has(search.suggest(9))


def test_optuna_keeps_away_from_where_trials_diverged() -> None:
    """All is alike up to a learning rate of 1e-3; half of the space lies beyond it."""

    def beyond(*, told: bool) -> int:
        search, found = TrialSearch(SPACE, "optuna", "cider", seed=0), []
        for number in range(1, 41):
            suggested = search.suggest(number)
            diverges = suggested["optimizer.learning_rate"] > 1e-3
            record = trial(number, status="failed") if diverges else trial(number, 0.5)
            search.tell(record.model_copy(update={"settings": suggested, "has_diverged": told and diverges}))
            found.append(diverges)
        return sum(found[10:])

    assert beyond(told=True) < beyond(told=False) / 2


def test_what_decides_the_score_is_what_mattered() -> None:
    records = run(TrialSearch(SPACE, "random", "cider", seed=0), range(1, 41))
    first, *others = importances(records, SPACE, "cider")
    assert (first.path, first.share > first.chance > 0) == ("optimizer.learning_rate", True)
    assert {one.path for one in (first, *others)} == set(SPACE.searched)
    assert sum(one.share for one in (first, *others)) == pytest.approx(1)
    assert all(one.share < 0.2 < first.share for one in others)


def test_importances_need_trials() -> None:
    assert importances([], SPACE, "cider") == []
    assert importances([trial(number, 0.1 * number) for number in (1, 2, 3)], SPACE, "cider") == []


def test_importances_need_scores_that_differ() -> None:
    alike = [trial(number, 0.2, dropout=0.2 + number / 100) for number in range(1, 11)]
    assert importances(alike, SPACE, "cider") == []
    nearly = [*alike, trial(11, 0.3, dropout=0.6)]
    assert len(importances(nearly, SPACE, "cider")) == len(SPACE.searched)

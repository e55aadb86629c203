"""Sweeps of choices alone, of which there are only so many: none is tried twice."""

import itertools
from typing import Literal

import pytest

from caption_ray.errors import UsageError
from caption_ray.presets import flickr8k
from caption_ray.tune import search as tune_search
from caption_ray.tune.adapters import NUMBER, SweepSearcher
from caption_ray.tune.records import TrialRecord
from caption_ray.tune.request import SweepRequest
from caption_ray.tune.search import TrialSearch
from caption_ray.tune.space import SearchSpace, Value, check_num_trials
from caption_ray.tune.sweep import sweep

Method = Literal["random", "optuna"]
METHODS: tuple[Method, ...] = ("random", "optuna")

SQUARE = SearchSpace(
    embedding_size=(256,),
    hidden_size=(256, 512),
    attention_size=(256,),
    learning_rate=(1e-3, 1e-3),
    dropout=(0.5, 0.5),
    batch_size=(40, 80),
    label_smoothing=(0.0, 0.0),
)
BOX = SQUARE.model_copy(update={"embedding_size": (100, 200, 400), "hidden_size": (128, 256, 512)})
"""Three by three by two: 18."""

PRESET: dict[str, Value] = {**SQUARE.fixed, "model.hidden_size": 512, "training.batch_size": 80}


def key(settings: dict[str, Value]) -> tuple[Value, ...]:
    return tuple(settings[path] for path in BOX.searched)


ALL_OF_BOX = sorted(itertools.product(*(BOX.choices[path] for path in BOX.searched)))


def record_of(number: int, settings: dict[str, Value]) -> TrialRecord:
    """Return a trial that ended; the larger its state, the better, by which Optuna would try that again and again."""
    score = settings["model.hidden_size"] / 512
    return TrialRecord(
        number=number, settings=settings, status="finished", epochs=({"epoch": 1.0, "cider": score, "bleu_4": 0.1},)
    )


def run(search: TrialSearch, numbers: range) -> list[TrialRecord]:
    records = []
    for number in numbers:
        records.append(record_of(number, search.suggest(number)))
        search.tell(records[-1])
    return records


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_all_combinations_are_tried_and_each_once(method: Method, seed: int) -> None:
    records = run(TrialSearch(BOX, method, "cider", seed), range(1, 19))
    assert sorted(key(record.settings) for record in records) == ALL_OF_BOX
    assert all(BOX.has(record.settings) for record in records)


@pytest.mark.parametrize("method", METHODS)
def test_trials_that_run_at_the_same_time_differ(method: Method) -> None:
    search = TrialSearch(BOX, method, "cider", seed=0)
    assert sorted(key(search.suggest(number)) for number in range(1, 19)) == ALL_OF_BOX


@pytest.mark.parametrize("method", METHODS)
def test_the_sampler_that_repeats_itself_is_left_for_the_lot(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_search, "_MAX_DRAWS", 1)
    first, second = (run(TrialSearch(BOX, method, "cider", seed=0), range(1, 19)) for _ in range(2))
    assert sorted(key(record.settings) for record in first) == ALL_OF_BOX
    assert first == second


@pytest.mark.parametrize("num_before", [1, 7, 17])
@pytest.mark.parametrize("method", METHODS)
def test_choices_that_were_cut_off_go_on_with_the_same_trials(method: Method, num_before: int) -> None:
    undisturbed = run(TrialSearch(BOX, method, "cider", seed=1), range(1, 19))
    search = TrialSearch(BOX, method, "cider", seed=1)
    for record in undisturbed[:num_before]:
        search.tell(record)
    assert run(search, range(num_before + 1, 19)) == undisturbed[num_before:]


def test_failed_and_diverged_trials_are_not_tried_again() -> None:
    search, found = TrialSearch(SQUARE, "optuna", "cider", seed=0), []
    for number in range(1, 5):
        found.append(search.suggest(number))
        failed = TrialRecord(number=number, settings=found[-1], status="failed", has_diverged=number % 2 == 0)
        search.tell(failed)
    assert len({tuple(settings.values()) for settings in found}) == 4


def test_where_all_have_been_tried_a_suggestion_is_still_one_of_the_space() -> None:
    search = TrialSearch(SQUARE, "random", "cider", seed=0)
    run(search, range(1, 5))
    assert SQUARE.has(search.suggest(5))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_preset_is_the_first_of_all_and_does_not_come_again(method: Method, seed: int) -> None:
    searcher = SweepSearcher(TrialSearch(SQUARE, method, "cider", seed), {}, PRESET)
    found = [searcher.suggest("Tune's own name") for _ in range(4)]
    assert found[0] == {NUMBER: 1, **PRESET}
    assert sorted((one["model.hidden_size"], one["training.batch_size"]) for one in found) == [
        (256, 40), (256, 80), (512, 40), (512, 80),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sweep_that_goes_on_knows_what_was_tried_and_what_runs(seed: int) -> None:
    """Of seven trials the second and the sixth were cut off; they come first, and then those that would have come."""
    undisturbed = SweepSearcher(TrialSearch(BOX, "random", "cider", seed), {}, None)
    known = {number: undisturbed.suggest("") for number in range(1, 19)}
    records = {number: record_of(number, dict(known[number])) for number in range(1, 8)}
    for record in records.values():
        del record.settings[NUMBER]
    records |= {number: records[number].model_copy(update={"status": "running"}) for number in (2, 6)}
    searcher = SweepSearcher(TrialSearch(BOX, "random", "cider", seed), records, None)
    assert [searcher.suggest("") for _ in range(13)] == [known[number] for number in (2, 6, *range(8, 19))]


@pytest.mark.parametrize("method", METHODS)
def test_copies_of_an_earlier_version_leave_all_others_to_be_tried(method: Method) -> None:
    copies = {number: record_of(number, PRESET) for number in (1, 2)}
    searcher = SweepSearcher(TrialSearch(SQUARE, method, "cider", seed=0), copies, PRESET)
    found = [searcher.suggest("") for _ in range(3)]
    tried = {(one["model.hidden_size"], one["training.batch_size"]) for one in found}
    assert tried == {(256, 40), (256, 80), (512, 40)}


def test_combinations_are_counted_unless_a_range_is_searched() -> None:
    assert (SQUARE.num_combinations, BOX.num_combinations) == (4, 18)
    assert SQUARE.model_copy(update={"hidden_size": (256,), "batch_size": (80,)}).num_combinations == 1
    assert SQUARE.model_copy(update={"dropout": (0.3, 0.6)}).num_combinations is None


def test_more_trials_than_there_can_be_are_refused() -> None:
    check_num_trials(SQUARE, 4)
    check_num_trials(SQUARE.model_copy(update={"dropout": (0.3, 0.6)}), 1000)
    with pytest.raises(UsageError, match=r"--num-trials 5: .* no more than 4; ask for at most 4, or widen the space"):
        check_num_trials(SQUARE, 5)


def test_a_sweep_of_more_trials_than_there_can_be_is_refused_before_anything_is_read() -> None:
    request = SweepRequest(
        preset_name="flickr8k",
        preset=flickr8k(),
        experiment=flickr8k(),
        space=SQUARE,
        data="/absent",
        features="/absent",
        storage="/absent",
        name="sweep",
        num_trials=24,
    )
    with pytest.raises(UsageError, match="--num-trials 24: "):
        sweep(request)

import pytest
from pydantic import ValidationError
from trials import SPACE, settings

from caption_ray.config import Experiment, ModelConfig
from caption_ray.errors import UsageError
from caption_ray.presets import PRESETS, flickr8k
from caption_ray.tune.space import (
    PATHS,
    SearchSpace,
    check_space,
    named_on,
    recentred,
    settings_of,
    space_around,
    with_settings,
)


def test_fixed_and_searched_settings_are_told_apart() -> None:
    assert SPACE.fixed == {"model.hidden_size": 256, "training.batch_size": 80, "training.label_smoothing": 0.0}
    assert SPACE.searched == (
        "model.embedding_size", "model.attention_size", "optimizer.learning_rate", "model.dropout",
    )  # fmt: skip


def test_space_knows_what_lies_in_it() -> None:
    assert SPACE.has(settings())
    assert SPACE.has(settings(rate=1e-4, dropout=0.6))
    assert not SPACE.has(settings(rate=0.9e-4))
    assert not SPACE.has(settings(embedding=300))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_default_space_is_around_the_preset_and_every_trial_of_it_is_valid(name: str) -> None:
    experiment = PRESETS[name]()
    space = space_around(experiment)
    assert space.has(settings_of(experiment))
    assert len(space.searched) == len(PATHS)
    check_space(space, experiment)


def test_default_space_has_an_experiment_of_unusual_dropout() -> None:
    for dropout in (0.9, *(per_mille / 1000 for per_mille in range(0, 1000, 5))):
        experiment = with_settings(flickr8k(), {"model.dropout": dropout})
        assert space_around(experiment).has(settings_of(experiment)), dropout


def test_default_space_of_flickr8k() -> None:
    space = space_around(flickr8k())
    assert space.hidden_size == (256, 512, 1024)
    assert space.batch_size == (40, 80, 160)
    assert space.learning_rate == (0.00033, 0.003)
    assert space.dropout == (0.3, 0.7)


def test_space_is_around_what_the_flags_ask_for_unless_it_is_asked_for_itself() -> None:
    preset = flickr8k()
    experiment = with_settings(preset, {"model.hidden_size": 300, "optimizer.learning_rate": 3e-4})
    asked = space_around(preset).model_copy(update={"attention_size": (64,), "learning_rate": (1e-4, 1e-2)})
    space = recentred(asked, preset, experiment)
    assert space.hidden_size == (150, 300, 600)
    assert (space.attention_size, space.learning_rate) == ((64,), (1e-4, 1e-2))
    assert space.embedding_size == space_around(preset).embedding_size
    assert space.outside(settings_of(experiment)) == {"model.attention_size": preset.model.attention_size}


def test_a_range_that_is_named_stays_though_it_is_the_presets() -> None:
    preset = flickr8k()
    experiment = with_settings(preset, {"model.dropout": 0.3, "model.hidden_size": 300})
    named = named_on(["flickr8k", "--model.dropout", "0.3", "--space.dropout", "0.3", "0.7", "--seed=1"])
    space = recentred(space_around(preset), preset, experiment, named)
    assert (space.dropout, space.hidden_size) == ((0.3, 0.7), (150, 300, 600))
    assert named_on(["--space.learning-rate=1e-3", "--space.batch_size", "20"]) == {"learning_rate", "batch_size"}


def test_settings_are_put_into_the_experiment_and_nothing_else_is() -> None:
    changed = with_settings(flickr8k(), settings(rate=5e-4))
    assert settings_of(changed) == settings(rate=5e-4)
    back = with_settings(changed, settings_of(flickr8k()))
    assert back == flickr8k()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": (1e-2, 1e-3)}, "a range goes from low to high"),
        ({"learning_rate": (0.0, 1e-3)}, "must be above 0"),
        ({"hidden_size": (64, 64)}, "names a value twice"),
        ({"hidden_size": ()}, "at least 1 item"),
        ({"width": (1,)}, "Extra inputs are not permitted"),
    ],
)
def test_space_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSpace.model_validate(changes)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SearchSpace(batch_size=(80, 42)), "batch_size .42. must be a multiple of captions_per_picture .5."),
        (SearchSpace(dropout=(0.5, 1.0)), "less than 1"),
        (SearchSpace(label_smoothing=(-0.1, 0.1)), "greater than or equal to 0"),
    ],
)
def test_space_with_a_trial_that_could_not_run_is_refused_at_once(space: SearchSpace, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_space(space, flickr8k())


def test_sizes_that_do_not_go_together_are_found_in_any_combination() -> None:
    tied = Experiment(model=ModelConfig(tie_embeddings=True))
    check_space(SearchSpace(embedding_size=(256,), hidden_size=(256,)), tied)
    with pytest.raises(UsageError, match=r"tie_embeddings needs hidden_size .512. to equal embedding_size .256."):
        check_space(SearchSpace(embedding_size=(256,), hidden_size=(256, 512)), tied)

import inspect
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import ValidationError

from caption_ray import config
from caption_ray.config import (
    DecodeOptions,
    EncoderConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    Settings,
    TrainingConfig,
)
from caption_ray.presets import PRESETS, palmetto

ALL_SETTINGS = [
    value
    for _, value in inspect.getmembers(config, inspect.isclass)
    if issubclass(value, Settings) and value is not Settings
]


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_unknown_keys_are_refused(settings: type[Settings]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        settings.model_validate({"beam_with": 3})


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_every_field_says_what_it_is(settings: type[Settings]) -> None:
    assert settings.__doc__
    for name, field in settings.model_fields.items():
        group = inspect.isclass(field.annotation) and issubclass(field.annotation, Settings)
        assert group or field.description, f"{settings.__name__}.{name} has no description"


def test_decoding_options_change_by_what_is_asked_for_alone() -> None:
    own = DecodeOptions(beam_width=4, max_words=9)
    assert own.changed(beam_width=None, length_penalty=0.5) == DecodeOptions(
        beam_width=4, max_words=9, length_penalty=0.5
    )
    with pytest.raises(ValidationError, match="max_words"):
        own.changed(max_words=101)


def test_settings_are_frozen() -> None:
    options = DecodeOptions()
    with pytest.raises(ValidationError, match="frozen"):
        options.beam_width = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name: str) -> None:
    experiment = PRESETS[name]()
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def settings_at_infinity(settings: type[Settings]) -> Iterator[Settings]:
    """Return the settings with each of its numbers at infinity, in what it holds too, as far as they take that."""
    for name, field in settings.model_fields.items():
        values: list[object] = []
        if field.annotation is float:
            values = [math.inf]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            values = list(settings_at_infinity(field.annotation))
        for value in values:
            with suppress(ValidationError):
                yield settings.model_validate({name: value})


def test_infinity_survives_json_wherever_it_is_taken() -> None:
    found = list(settings_at_infinity(Experiment))
    assert [each.optimizer.max_grad_norm for each in found if isinstance(each, Experiment)] == [math.inf]  # clips none
    for experiment in found:
        assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_palmetto_is_the_original_run() -> None:
    experiment = palmetto()
    assert experiment.encoder.backbone == "resnet50"
    assert experiment.encoder.image_size == 224  # a grid of 7x7
    assert (experiment.model.embedding_size, experiment.model.hidden_size) == (256, 256)
    assert experiment.optimizer.learning_rate == 1e-4
    assert experiment.optimizer.schedule == "constant"
    assert (experiment.training.epochs, experiment.training.batch_size) == (100, 16)
    assert experiment.training.patience == 0


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (
            TrainingConfig,
            {"batch_size": 81},
            r"batch_size \(81\) must be a multiple of captions_per_picture \(5\)",
        ),
        (ModelConfig, {"feature_dropout": 0.1}, "feature_dropout needs feature_size"),
        (ModelConfig, {"tie_embeddings": True, "hidden_size": 512}, "tie_embeddings needs"),
        (ModelConfig, {"dropout": 1.0}, "less than 1"),
        (EncoderConfig, {"image_size": 225}, "multiple of 32"),
        (EncoderConfig, {"finetune_stages": 5}, "less than or equal to 4"),
        (DecodeOptions, {"beam_width": 0}, "greater than or equal to 1"),
        (DecodeOptions, {"beam_width": 21}, "less than or equal to 20"),
        (OptimizerConfig, {"learning_rate": 0}, "greater than 0"),
        (OptimizerConfig, {"learning_rate": math.inf}, "finite number"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "less than 1"),
        (OptimizerConfig, {"schedule": "linear"}, "'constant', 'cosine' or 'onecycle'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings.model_validate(values)


def test_tied_embeddings_may_have_another_size_behind_a_deep_output() -> None:
    assert ModelConfig(tie_embeddings=True, embedding_size=300, hidden_size=512, deep_output=True)
    assert ModelConfig(tie_embeddings=True, embedding_size=512, hidden_size=512)

"""Which settings a sweep tries, and an experiment with the settings of one trial put in."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from caption_ray.config import Experiment, Settings
from caption_ray.errors import UsageError

Value = int | float
Choices = Annotated[tuple[int, ...], Field(min_length=1)]
Range = tuple[float, float]

PATHS = {
    "embedding_size": "model.embedding_size",
    "hidden_size": "model.hidden_size",
    "attention_size": "model.attention_size",
    "learning_rate": "optimizer.learning_rate",
    "dropout": "model.dropout",
    "batch_size": "training.batch_size",
    "label_smoothing": "training.label_smoothing",
}
"""Where in an experiment each field of the space belongs; also the flag of jobs/train.py that sets it."""

LOGARITHMIC = frozenset({"optimizer.learning_rate"})


class SearchSpace(Settings):
    """What is tried: some values, or a range from low to high. One value, or a range of no width, is not searched."""

    embedding_size: Choices = Field((256,), description="Sizes of a word embedding.")
    hidden_size: Choices = Field((256,), description="Sizes of the LSTM's state.")
    attention_size: Choices = Field((256,), description="Hidden sizes of the attention.")
    learning_rate: Range = Field((3e-4, 3e-3), description="Range of the peak learning rate; logarithmic.")
    dropout: Range = Field((0.2, 0.6), description="Range of the dropout before the output layer.")
    batch_size: Choices = Field((80,), description="Captions per optimiser step.")
    label_smoothing: Range = Field((0.0, 0.15), description="Range of the label smoothing.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in PATHS:
            value = getattr(self, name)
            if isinstance(value[0], float) and value[0] > value[1]:
                raise ValueError(f"{name}: a range goes from low to high, not from {value[0]:g} to {value[1]:g}")
            if isinstance(value[0], int) and len(set(value)) < len(value):
                raise ValueError(f"{name}: {value} names a value twice")
        if self.learning_rate[0] <= 0:
            raise ValueError("learning_rate: must be above 0")
        return self

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """The settings that take one of some values, by path; those with a single one too."""
        return {path: getattr(self, name) for name, path in PATHS.items() if isinstance(getattr(self, name)[0], int)}

    @property
    def ranges(self) -> dict[str, Range]:
        """The settings that lie in a range, by path; those of no width too."""
        return {path: getattr(self, name) for name, path in PATHS.items() if isinstance(getattr(self, name)[0], float)}

    @property
    def fixed(self) -> dict[str, Value]:
        """The settings that leave nothing to search for, by path."""
        single = {path: values[0] for path, values in self.choices.items() if len(values) == 1}
        return {**single, **{path: low for path, (low, high) in self.ranges.items() if low == high}}

    @property
    def searched(self) -> tuple[str, ...]:
        """The paths of all others, in order."""
        return tuple(path for path in PATHS.values() if path not in self.fixed)

    @property
    def num_combinations(self) -> int | None:
        """How many different trials there can be; None where a range is searched, of which there is no end."""
        if any(path in self.ranges for path in self.searched):
            return None
        return math.prod(len(values) for values in self.choices.values())

    def has(self, settings: Mapping[str, Value]) -> bool:
        """Tell whether a trial's settings lie within the space."""
        return not self.outside(settings)

    def outside(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return those of a trial's settings that do not lie within the space."""
        wrong = [path for path, values in self.choices.items() if settings[path] not in values]
        wrong += [path for path, (low, high) in self.ranges.items() if not low <= settings[path] <= high]
        return {path: settings[path] for path in wrong}


def space_around(experiment: Experiment) -> SearchSpace:
    """Return the space to search by default: half, once and twice each size, and a wide range of the rest.

    The experiment itself lies within it.
    """
    model, training = experiment.model, experiment.training
    rate, step = experiment.optimizer.learning_rate, training.captions_per_picture
    batches = (-(-training.batch_size // 2 // step) * step, training.batch_size, 2 * training.batch_size)
    return SearchSpace(
        embedding_size=_around(model.embedding_size),
        hidden_size=_around(model.hidden_size),
        attention_size=_around(model.attention_size),
        learning_rate=(_round(rate / 3), _round(rate * 3)),
        dropout=(_round(max(0.0, model.dropout - 0.2)), max(model.dropout, _round(min(0.8, model.dropout + 0.2)))),
        batch_size=tuple(sorted(set(batches))),
        label_smoothing=(0.0, max(0.15, training.label_smoothing)),
    )


def recentred(
    asked: SearchSpace, preset: Experiment, experiment: Experiment, named: Collection[str] = ()
) -> SearchSpace:
    """Return the space that was asked for, around the experiment wherever it is still that around its preset.

    named: what was asked for by name, which stays though it be the same.
    """
    usual, around = space_around(preset), space_around(experiment)
    left = [name for name in PATHS if name not in named and getattr(asked, name) == getattr(usual, name)]
    return asked.model_copy(update={name: getattr(around, name) for name in left})


def named_on(command_line: Sequence[str]) -> frozenset[str]:
    """Return the parts of the space that have a flag on a command line; the parsed values do not tell."""
    flags = {word.partition("=")[0].replace("_", "-") for word in command_line}
    return frozenset(name for name in PATHS if f"--space.{name}".replace("_", "-") in flags)


def settings_of(experiment: Experiment) -> dict[str, Value]:
    """Return an experiment's own values of the settings that a sweep may change, by path."""
    values = experiment.model_dump()
    return {path: values[path.split(".")[0]][path.split(".")[1]] for path in PATHS.values()}


def with_settings(experiment: Experiment, settings: Mapping[str, Value]) -> Experiment:
    """Return the experiment with a trial's settings. Raises ValidationError where they do not go together."""
    values = experiment.model_dump()
    for path, value in settings.items():
        group, name = path.split(".")
        values[group][name] = value
    return Experiment.model_validate(values)


def check_space(space: SearchSpace, experiment: Experiment) -> None:
    """Raise UsageError where some trial's settings would not go together, before any is started."""
    corners = {**space.choices, **{path: tuple({low, high}) for path, (low, high) in space.ranges.items()}}
    for values in itertools.product(*corners.values()):
        settings = dict(zip(corners, values, strict=True))
        try:
            with_settings(experiment, settings)
        except ValidationError as error:
            reason = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise UsageError(f"--space: a trial could have {settings}, but {reason}; narrow the space") from error


def check_num_trials(space: SearchSpace, num_trials: int) -> None:
    """Raise UsageError where there cannot be so many different trials.

    All train from one seed: a copy of a trial would tell nothing, and count once more in what mattered.
    """
    most = space.num_combinations
    if most is not None and num_trials > most:
        raise UsageError(
            f"--num-trials {num_trials}: each trial has settings of its own, and --space makes no more than {most}; "
            f"ask for at most {most}, or widen the space"
        )


def _around(size: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, size // 2), size, 2 * size}))


def _round(value: float) -> float:
    """Keep two digits: for people to read, and not more than a search can tell apart."""
    return float(f"{value:.2g}")

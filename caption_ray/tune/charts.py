"""The report's drawings as numbers: where each line of an SVG goes. No library draws them.

A page that has a plotting library in it, to ask nothing of the network, carries all of it (plotly: 4 MB) for three
drawings; as SVG they are some kilobytes, follow the page's colours, and one trial is lit in all of them together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caption_ray.tune.records import Status
from caption_ray.tune.search import Importance
from caption_ray.tune.space import LOGARITHMIC, SearchSpace
from caption_ray.tune.table import SHORT_NAMES, Standing

CURVES_WIDTH, CURVES_HEIGHT = 720.0, 300.0  # user units of the SVG
PARALLEL_WIDTH, PARALLEL_HEIGHT = 1000.0, 260.0
BARS_WIDTH, BAR_HEIGHT = 420.0, 26.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on an axis, `at` user units along it."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One trial's line. `heat` goes from 0 for the worst to 1 for the best."""

    number: int
    points: tuple[tuple[float, float], ...]
    status: Status
    heat: float
    label: str

    @property
    def path(self) -> str:
        """The points as SVG has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Scores by epoch, and both axes' ticks."""

    lines: tuple[Line, ...]
    epochs: tuple[Tick, ...]
    scores: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One upright axis of the parallel coordinates."""

    label: str
    x: float
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Parallel coordinates: an axis a searched setting, and the score as the last."""

    axes: tuple[Axis, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """How much a setting mattered, and how wide that is; up to `chance` it may be nothing."""

    label: str
    share: float
    width: float
    chance: float


def learning_curves(standings: Sequence[Standing], metric: str) -> Curves:
    """Return every trial's curve, the worst first, so that the best is drawn over the others."""
    scores = {one.record.number: one.record.scores(metric) for one in standings}
    values = [score for curve in scores.values() for score in curve.values()]
    last = max((epoch for curve in scores.values() for epoch in curve), default=1)
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0))
    low, high = ticks[0], ticks[-1]
    heats = _heats(standings)

    def place(epoch: int, score: float) -> tuple[float, float]:
        across = (epoch - 1) / max(1, last - 1) * CURVES_WIDTH
        return across, CURVES_HEIGHT * (1 - (score - low) / (high - low))

    step = max(1, math.ceil(last / 12))
    return Curves(
        lines=tuple(
            Line(
                number=one.record.number,
                points=tuple(place(epoch, score) for epoch, score in sorted(scores[one.record.number].items())),
                status=one.status,
                heat=heats[one.record.number],
                label=_label(one, metric),
            )
            for one in reversed(standings)
            if scores[one.record.number]
        ),
        epochs=tuple(Tick(at=place(epoch, low)[0], label=str(epoch)) for epoch in range(1, last + 1, step)),
        scores=tuple(Tick(at=place(1, score)[1], label=f"{score:g}") for score in ticks),
    )


def parallel_coordinates(standings: Sequence[Standing], space: SearchSpace, metric: str) -> Parallel:
    """Return an axis a searched setting and every scored trial's way over them, the worst first."""
    scored = [one for one in standings if one.score is not None]
    ticks = nice_ticks(*_ends([one.score for one in scored if one.score is not None]))
    gap = PARALLEL_WIDTH / max(1, len(space.searched))
    axes = [
        Axis(label=SHORT_NAMES[path], x=index * gap, ticks=_axis_ticks(path, space))
        for index, path in enumerate(space.searched)
    ]
    ends = ticks[0], ticks[-1]
    score_ticks = tuple(Tick(at=_height(_between(score, *ends)), label=f"{score:g}") for score in ticks)
    axes.append(Axis(label=metric, x=len(space.searched) * gap, ticks=score_ticks))
    heats = _heats(standings)
    lines = []
    for one in reversed(scored):
        heights = [_height(_share(one.record.settings[path], path, space)) for path in space.searched]
        heights.append(_height(_between(one.score or 0.0, *ends)))
        lines.append(
            Line(
                number=one.record.number,
                points=tuple((axis.x, height) for axis, height in zip(axes, heights, strict=True)),
                status=one.status,
                heat=heats[one.record.number],
                label=_label(one, metric),
            )
        )
    return Parallel(axes=tuple(axes), lines=tuple(lines))


def importance_bars(importances: Sequence[Importance]) -> tuple[Bar, ...]:
    """Return a bar a setting, the longest as wide as there is room."""
    longest = max((max(one.share, one.chance) for one in importances), default=0.0) or 1.0
    return tuple(
        Bar(
            label=SHORT_NAMES[one.path],
            share=one.share,
            width=one.share / longest * BARS_WIDTH,
            chance=one.chance / longest * BARS_WIDTH,
        )
        for one in importances
    )


def nice_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return three to eight round numbers, evenly apart, from at most `low` to at least `high`."""
    span = high - low if high - low > 1e-8 else max(abs(high), 1.0) * 0.1  # ticks are rounded to 1e-10
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 10) for number in range(first, max(last, first + 2) + 1))


def _axis_ticks(path: str, space: SearchSpace) -> tuple[Tick, ...]:
    if path in space.choices:
        labelled: list[tuple[float, str]] = [(value, str(value)) for value in space.choices[path]]
    else:
        low, high = space.ranges[path]
        middle = math.sqrt(low * high) if path in LOGARITHMIC else (low + high) / 2
        labelled = [(value, f"{value:.2g}") for value in (low, middle, high)]
    return tuple(Tick(at=_height(_share(value, path, space)), label=label) for value, label in labelled)


def _share(value: float, path: str, space: SearchSpace) -> float:
    """Return how far up its axis a setting lies, 0 to 1."""
    if path in space.choices:
        return sorted(space.choices[path]).index(int(value)) / (len(space.choices[path]) - 1)
    low, high = space.ranges[path]
    return (
        _between(math.log(value), math.log(low), math.log(high)) if path in LOGARITHMIC else _between(value, low, high)
    )


def _between(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _height(share: float) -> float:
    return PARALLEL_HEIGHT * (1 - share)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values, default=0.0), max(values, default=1.0)


def _heats(standings: Sequence[Standing]) -> dict[int, float]:
    """Return 1 for the best to 0 for the worst, by place: scores lie too near each other to be told apart by colour."""
    return {one.record.number: 1 - (one.place - 1) / max(1, len(standings) - 1) for one in standings}


def _label(one: Standing, metric: str) -> str:
    return f"trial {one.record.number}, place {one.place}: {metric} {one.score or 0.0:.3f} at epoch {one.best_epoch}"

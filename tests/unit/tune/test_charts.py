import pytest
from trials import SPACE, TRIALS

from caption_ray.tune.charts import (
    BARS_WIDTH,
    CURVES_HEIGHT,
    CURVES_WIDTH,
    PARALLEL_HEIGHT,
    PARALLEL_WIDTH,
    importance_bars,
    learning_curves,
    nice_ticks,
    parallel_coordinates,
)
from caption_ray.tune.search import Importance
from caption_ray.tune.table import rank

STANDINGS = rank(TRIALS, "cider", {})


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.05, 0.41, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.31, 0.32, (0.31, 0.312, 0.314, 0.316, 0.318, 0.32)),
        (0.5, 0.5, (0.5, 0.52, 0.54)),
        (0.0, 0.0, (0.0, 0.02, 0.04)),
    ],
)
def test_ticks_are_round_and_reach_around(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == ticks


def test_curves_go_through_the_scores() -> None:
    curves = learning_curves(STANDINGS, "cider")
    assert [tick.label for tick in curves.epochs] == ["1", "2", "3", "4"]
    assert [tick.label for tick in curves.scores] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    lines = {line.number: line for line in curves.lines}
    assert set(lines) == {1, 2, 3, 5, 6}  # the fourth failed before its first epoch
    across, up = zip(*lines[1].points, strict=True)
    assert across == pytest.approx((0.0, CURVES_WIDTH / 3, CURVES_WIDTH * 2 / 3, CURVES_WIDTH))
    # 0.10, 0.20, 0.30 and 0.28 on an axis from 0 at the bottom to 0.5 at the top.
    assert up == pytest.approx((CURVES_HEIGHT * 0.8, CURVES_HEIGHT * 0.6, CURVES_HEIGHT * 0.4, CURVES_HEIGHT * 0.44))
    assert lines[3].status == "stopped"
    assert curves.lines[-1].number == 6  # the best is drawn over the others
    assert (lines[6].heat, lines[2].heat, lines[3].heat) == pytest.approx((1.0, 0.8, 0.2))  # by place, of six


def test_scores_too_near_each_other_to_tell_still_have_ticks() -> None:
    ticks = nice_ticks(0.0, 3e-12)
    assert ticks == tuple(sorted({*ticks}))
    assert len(ticks) > 1


def test_parallel_coordinates_stand_where_the_values_are() -> None:
    parallel = parallel_coordinates(STANDINGS, SPACE, "cider")
    assert [axis.label for axis in parallel.axes] == ["embedding", "attention", "learning rate", "dropout", "cider"]
    assert [axis.x for axis in parallel.axes] == [0.0, 250.0, 500.0, 750.0, PARALLEL_WIDTH]
    embedding, attention, rate, dropout, _ = parallel.axes
    assert [(tick.label, tick.at) for tick in embedding.ticks] == [("100", PARALLEL_HEIGHT), ("200", 130.0), ("400", 0)]
    assert [tick.label for tick in attention.ticks] == ["64", "128"]
    assert [tick.label for tick in rate.ticks] == ["0.0001", "0.001", "0.01"]
    assert [tick.label for tick in dropout.ticks] == ["0.2", "0.4", "0.6"]
    (line,) = [line for line in parallel.lines if line.number == 3]
    heights = [y for _, y in line.points]
    # The largest embedding, the least attention, the highest rate, the middle dropout, 0.06 of 0.5.
    assert heights == pytest.approx([0.0, PARALLEL_HEIGHT, 0.0, PARALLEL_HEIGHT / 2, PARALLEL_HEIGHT * 0.88])


def test_longest_bar_fills_the_width() -> None:
    shares = {"optimizer.learning_rate": 0.6, "model.dropout": 0.3, "model.hidden_size": 0.1}
    bars = importance_bars([Importance(path=path, share=share, chance=0.3) for path, share in shares.items()])
    assert [bar.label for bar in bars] == ["learning rate", "dropout", "hidden"]
    assert [bar.width for bar in bars] == pytest.approx([BARS_WIDTH, BARS_WIDTH / 2, BARS_WIDTH / 6])
    assert [bar.chance for bar in bars] == pytest.approx([BARS_WIDTH / 2] * 3)
    assert importance_bars([]) == ()


def test_sweep_without_scores_draws_nothing_and_does_not_fail() -> None:
    empty = rank([TRIALS[3]], "cider", {})
    assert learning_curves(empty, "cider").lines == ()
    assert parallel_coordinates(empty, SPACE, "cider").lines == ()

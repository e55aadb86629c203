import math
from itertools import pairwise

import pytest

from caption_ray.config import OptimizerConfig
from caption_ray.train.schedule import learning_rate_factor

COSINE = OptimizerConfig(schedule="cosine", warmup_share=0.2)
ONECYCLE = OptimizerConfig(schedule="onecycle")


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_constant(progress: float) -> None:
    assert learning_rate_factor(OptimizerConfig(schedule="constant"), progress) == 1.0


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.01),  # never quite zero
        (0.1, 0.5),
        (0.2, 1.0),
        (0.4, 0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2),  # a quarter of the way down
        (0.6, 0.505),
        (1.0, 0.01),
        (1.5, 0.01),
        (-0.5, 0.01),
    ],
)
def test_cosine(progress: float, expected: float) -> None:
    assert learning_rate_factor(COSINE, progress) == pytest.approx(expected)


def test_cosine_without_warm_up_starts_at_its_peak() -> None:
    settings = OptimizerConfig(schedule="cosine", warmup_share=0.0)
    assert learning_rate_factor(settings, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.04), (0.15, 0.52), (0.3, 1.0), (0.65, 0.505), (1.0, 0.01)],
)
def test_onecycle(progress: float, expected: float) -> None:
    assert learning_rate_factor(ONECYCLE, progress) == pytest.approx(expected)


@pytest.mark.parametrize(("settings", "peak"), [(COSINE, 20), (ONECYCLE, 30)])
def test_rises_to_the_peak_then_falls_without_jumps(settings: OptimizerConfig, peak: int) -> None:
    factors = [learning_rate_factor(settings, step / 100) for step in range(101)]
    changes = [after - before for before, after in pairwise(factors)]
    assert all(change > 0 for change in changes[:peak])
    assert all(change < 0 for change in changes[peak:])
    assert max(map(abs, changes)) < 0.06

from collections.abc import Callable

import pytest
from tiny import build_stepper

from caption_ray.train.steps import Stepper


@pytest.fixture
def make_stepper() -> Callable[..., Stepper]:
    """Build steppers over a small decoder of region features, each from the same seed."""
    return build_stepper

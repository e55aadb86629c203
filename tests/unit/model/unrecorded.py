"""A recorder for tests on CPUs."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from caption_ray.model.recording import WARM_UPS, Recorder

Result = TypeVar("Result")


class Unrecorded(Recorder):
    """Does the same again instead, writing the result where it was; notes how often something was to be recorded.

    failing: counts at which there is no memory.
    """

    def __init__(self, failing: frozenset[int] = frozenset()) -> None:
        super().__init__(torch.device("cpu"))
        self.count, self.failing = 0, failing

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.count += 1
        if self.count in self.failing:
            raise torch.OutOfMemoryError("CUDA out of memory\nas at line two")
        for _ in range(WARM_UPS):
            compute()
        result = compute()

        def replay() -> None:
            again = compute()
            if isinstance(result, Tensor) and isinstance(again, Tensor):
                result.copy_(again)

        return replay, result

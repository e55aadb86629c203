"""What the app needs of whoever computes captions: this process (`local`) or Ray Serve's replicas (`deployment`)."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from caption_ray.caption import Caption
from caption_ray.serve.schemas import ModelAnswer

Square = npt.NDArray[np.uint8]
"""A picture as the encoder takes it, (3, image_size, image_size)."""


class OverloadedError(RuntimeError):
    """The backend takes no more now; the request may be sent again after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)  # what it is made of anew in another process
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"overloaded; try again in {self.retry_after_s} s"


class BackendUnavailableError(RuntimeError):
    """No model is there to answer: none has been loaded yet, or the one that was computing has died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedPicture:
    """Captions of one picture, best first, and the digest of the bundle that they are of."""

    captions: tuple[Caption, ...]
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyWord:
    """One word of a greedy caption: its log-probability, and attention (side, side), which sums to 1."""

    text: str
    log_probability: float
    attention: npt.NDArray[np.float32]


class CaptionBackend(Protocol):
    """Computes captions; all methods may be called many times at once.

    They raise OverloadedError, and BackendUnavailableError where an equal call may succeed a moment later.
    """

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions, as many as the beam is wide; by default the bundle's own width."""

    def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        """Yield the greedy caption's words as they are found, and at last the whole."""

    async def model(self) -> ModelAnswer:
        """Describe the model that answers now. Raises BackendUnavailableError before one is loaded."""

"""A backend without a model: says what it is told to, when it is told to."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timezone

import numpy as np

from caption_ray.inference import Caption
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.schemas import ModelAnswer

GRID = np.full((2, 2, 2), 0.25, dtype=np.float32)
CAPTION = Caption(words=("a", "dog"), log_probability=-3.0, attention=GRID)
MODEL = ModelAnswer(
    id="f" * 64,
    name="stand-in",
    location="/nowhere",
    loaded_at=datetime(2026, 1, 31, tzinfo=timezone.utc),
    backbone="none",
    image_size=32,
    grid_side=2,
    vocabulary_size=6,
    num_parameters=0,
    device="cpu",
    precision="fp32",
    beam_width=1,
    max_words=2,
    metrics={},
)


class StandIn:
    """Raises the errors in `failing`, one a call, then answers after `seconds`; notes calls and cancellations."""

    def __init__(self, failing: Sequence[Exception] = (), seconds: float = 0.0) -> None:
        self.failing = list(failing)
        self.seconds = seconds
        self.calls: list[int | None] = []
        self.num_cancelled = 0
        self.failing_midway: list[Exception] = []  # raised after a stream's first word, one a call
        self.failing_model: list[Exception] = []
        self.num_questions = 0
        self.ready = True

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        await self._begin(beam_width)
        return [CaptionedPicture(captions=(CAPTION,), model_id=MODEL.id) for _ in pictures]

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        await self._begin(1)
        for index, text in enumerate(CAPTION.words):
            yield GreedyWord(text=text, log_probability=-1.0, attention=GRID[index])
            if self.failing_midway and index == 0:
                raise self.failing_midway.pop(0)
            await self._wait()
        yield CaptionedPicture(captions=(CAPTION,), model_id=MODEL.id)

    async def model(self) -> ModelAnswer:
        self.num_questions += 1
        if self.failing_model:
            raise self.failing_model.pop(0)
        if not self.ready:
            raise BackendUnavailableError("none has been loaded from /secret/place")
        return MODEL

    async def _begin(self, beam_width: int | None) -> None:
        self.calls.append(beam_width)
        if self.failing:
            raise self.failing.pop(0)
        await self._wait()

    async def _wait(self) -> None:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


class Chatty(StandIn):
    """Says words without end, larger than the buffers between it and its client."""

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        try:
            while True:
                yield GreedyWord(text="x" * (1 << 20), log_probability=-1.0, attention=GRID[0])
        finally:
            self.num_cancelled += 1

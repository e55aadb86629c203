import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest
from stand_in import CAPTION, GRID, MODEL, StandIn

from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.retrying import spoken_twice, twice

PICTURE = np.zeros((3, 8, 8), np.uint8)


class Script(StandIn):
    """Streams the words of each call in turn, and breaks off where they end in None."""

    def __init__(self, *calls: Sequence[str | None]) -> None:
        super().__init__()
        self.script = list(calls)

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        for text in self.script.pop(0):
            if text is None:
                raise BackendUnavailableError("died")
            yield GreedyWord(text=text, log_probability=-1.0, attention=GRID[0])
        yield CaptionedPicture(captions=(CAPTION,), model_id=MODEL.id)


def spoken(*calls: Sequence[str | None]) -> list[str]:
    """Return what is heard of a stream, its end as a full stop."""
    heard: list[str] = []

    async def listen() -> None:
        async for item in spoken_twice(Script(*calls), PICTURE, ServiceMetrics().retries):
            heard.append(item.text if isinstance(item, GreedyWord) else ".")  # noqa: PERF401  # it may break off

    try:
        asyncio.run(listen())
    except BackendUnavailableError:
        heard.append("!")
    return heard


@pytest.mark.parametrize(
    ("calls", "heard"),
    [
        ([["a", "dog"]], "a dog ."),
        ([[None], ["a", "dog"]], "a dog ."),
        ([["a", None], ["a", "dog"]], "a dog ."),
        ([["a", "dog", None], ["a", "dog"]], "a dog ."),
        ([["a", "a", None], ["a", "a", "a"]], "a a a ."),
        ([["a", None], ["a", "dog", None]], "a dog !"),
        ([["a", None], ["the", "dog"]], "a !"),
        ([["a", "dog", None], ["a", "cat"]], "a dog !"),
        ([["a", "dog", None], ["a"]], "a dog !"),
        ([[None], [None]], "!"),
    ],
)
def test_each_word_is_said_once(calls: list[list[str | None]], heard: str) -> None:
    assert " ".join(spoken(*calls)) == heard


def test_second_tries_are_counted() -> None:
    metrics = ServiceMetrics()
    fates = iter(
        [BackendUnavailableError("died"), None, BackendUnavailableError("died"), BackendUnavailableError("too")]
    )

    async def call() -> str:
        if (fate := next(fates)) is not None:
            raise fate
        return "answered"

    assert asyncio.run(twice(call, metrics.retries)) == "answered"
    assert "caption_ray_retries_total 1.0" in metrics.text().decode()
    with pytest.raises(BackendUnavailableError, match="too"):
        asyncio.run(twice(call, metrics.retries))
    assert "caption_ray_retries_total 2.0" in metrics.text().decode()

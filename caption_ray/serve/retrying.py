"""A second try where a replica has died: captioning changes nothing, so that it may be done twice."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from caption_ray.serve.backend import BackendUnavailableError, CaptionBackend, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.metrics import Counts

Result = TypeVar("Result")

_SECOND_TRY_AFTER_S = 0.05
"""Time for a router to learn that a replica has died."""


async def twice(call: Callable[[], Awaitable[Result]], retries: Counts) -> Result:
    """Return the call's result, or that of the same call a moment later where it raised BackendUnavailableError."""
    try:
        return await call()
    except BackendUnavailableError:
        retries.inc()
        await asyncio.sleep(_SECOND_TRY_AFTER_S)
        return await call()


async def spoken_twice(
    backend: CaptionBackend, picture: Square, retries: Counts
) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
    """Yield what the backend's stream does, begun anew where it breaks off: its words are the same each time.

    Those that have been said are not said again. Raises BackendUnavailableError where it breaks off again, or where the
    other replica, whose model has been swapped, says otherwise.
    """
    said: list[str] = []
    for attempt in (1, 2):
        num_words = 0
        try:
            async with aclosing(backend.stream(picture)) as stream:
                async for item in stream:
                    if isinstance(item, GreedyWord):
                        if said[num_words : num_words + 1] == [item.text]:
                            num_words += 1
                            continue
                        said.append(item.text)
                        num_words += 1
                    if num_words < len(said):
                        raise BackendUnavailableError("another model answers, which says otherwise")
                    yield item
            return
        except BackendUnavailableError:
            if attempt == 2:
                raise
            retries.inc()
            await asyncio.sleep(_SECOND_TRY_AFTER_S)

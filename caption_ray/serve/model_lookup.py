"""Which model answers: asked of the backend, which may be another process, once at a time however many want to know."""

import asyncio
import time
from contextvars import Context

from caption_ray.serve.backend import CaptionBackend, OverloadedError
from caption_ray.serve.metrics import Counts
from caption_ray.serve.retrying import twice
from caption_ray.serve.schemas import ModelAnswer

_MAX_AGE_S = 1.0
"""How old a description may be before it is asked for anew."""


class ModelLookup:
    """Describes the model. retries: counts questions that were asked twice."""

    def __init__(self, backend: CaptionBackend, retries: Counts) -> None:
        self._backend, self._retries = backend, retries
        self._known: ModelAnswer | None = None
        self._asking: asyncio.Task[ModelAnswer] | None = None
        self._asked_at = 0.0

    async def now(self) -> ModelAnswer:
        """Describe the model as the backend does now or, where it has too much to do, as it did last.

        Raises BackendUnavailableError; OverloadedError where it has never been described.
        """
        try:
            return await asyncio.shield(self._ask())  # others may be waiting for it too
        except OverloadedError:
            if self._known is None:
                raise
            return self._known

    async def recently(self) -> ModelAnswer:
        """Describe the model as it was a moment ago, without waiting for the backend but for the first time."""
        if self._known is None:
            return await self.now()
        if time.monotonic() - self._asked_at > _MAX_AGE_S:
            self._ask()
        return self._known

    def _ask(self) -> "asyncio.Task[ModelAnswer]":
        if self._asking is None or self._asking.done():
            self._asked_at = time.monotonic()
            # Not in the context of who asks first: when Ray Serve cancels a request, it cancels all that was called in
            # its context, and the others would be told of that.
            self._asking = Context().run(asyncio.create_task, self._answer())
            self._asking.add_done_callback(_take_note)
        return self._asking

    async def _answer(self) -> ModelAnswer:
        self._known = await twice(self._backend.model, self._retries)
        return self._known


def _take_note(task: "asyncio.Task[ModelAnswer]") -> None:
    """Look at how a task ended: where nobody waits for it, an error in it is no news to anybody."""
    if not task.cancelled():
        task.exception()

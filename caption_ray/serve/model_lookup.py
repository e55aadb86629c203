"""Which model answers: asked of the backend, which may be another process, once at a time however many want to know."""

import asyncio
import contextlib
import time
from contextvars import Context

from caption_ray.serve.backend import BackendUnavailableError, CaptionBackend, OverloadedError
from caption_ray.serve.metrics import Counts
from caption_ray.serve.retrying import twice
from caption_ray.serve.schemas import ModelAnswer

_MAX_AGE_S = 1.0
"""How old a description may be before it is asked for anew."""

_STALE_S = 10.0
"""From which age on the new one is waited for: another model may have come in a quiet time."""

_PATIENCE_S = 2.0
"""For how long, at most: whatever has too much to do tells of itself late."""


class ModelLookup:
    """Describes the model. retries: counts questions that were asked twice."""

    def __init__(self, backend: CaptionBackend, retries: Counts) -> None:
        self._backend, self._retries = backend, retries
        self._known: ModelAnswer | None = None
        self._asking: asyncio.Task[ModelAnswer] | None = None
        self._asked_at = self._known_at = 0.0

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
        """Describe the model as it was a moment ago; the backend is waited for when nobody has asked it for a while."""
        if self._known is None:
            return await self.now()
        if time.monotonic() - self._asked_at > _MAX_AGE_S:
            self._ask()
        if self._asking and not self._asking.done() and time.monotonic() - self._known_at > _STALE_S:
            with contextlib.suppress(BackendUnavailableError, OverloadedError, asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._asking), _PATIENCE_S)
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
        self._known, self._known_at = await twice(self._backend.model, self._retries), time.monotonic()
        return self._known


def _take_note(task: "asyncio.Task[ModelAnswer]") -> None:
    """Look at how a task ended: where nobody waits for it, an error in it is no news to anybody."""
    if not task.cancelled():
        task.exception()

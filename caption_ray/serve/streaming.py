"""Server-sent events: words as they are found, then the answer, or an error if it fails half-way."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from caption_ray.serve.access_log import record_of
from caption_ray.serve.errors import TABLE, ClientGoneError, DeadlineError
from caption_ray.serve.schemas import ErrorAnswer, PictureAnswer, StreamWord

Item = StreamWord | PictureAnswer


class EventStream:
    """Turns words and an answer into events `word`, `caption` and `error`.

    source: is closed in any case.  describe: returns the data of the event for an error.
    """

    def __init__(self, source: AsyncGenerator[Item, None], describe: Callable[[Exception], ErrorAnswer]) -> None:
        self._source, self._describe = source, describe
        self._first: Item | None = None
        self.is_whole = False
        """All of it has been sent, or an error in its place."""

    async def start(self) -> None:
        """Wait for the first word; raises what the source raises."""
        try:
            self._first = await anext(self._source)
        except BaseException:
            await self._source.aclose()
            raise

    def response(self, remaining_s: float, deadline_s: float) -> StreamingResponse:
        """Return the response; the stream ends with an error after what remains of the request's whole `deadline_s`."""
        # A proxy that buffers would bring all words at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return _EventResponse(self, self._events(remaining_s, deadline_s), headers)

    async def _events(self, remaining_s: float, deadline_s: float) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        end = loop.time() + remaining_s
        item = self._first
        try:
            while item is not None:
                self.is_whole = not isinstance(item, StreamWord)  # as it is sent: whoever has it all may go at once
                yield _event("caption" if self.is_whole else "word", item)
                if self.is_whole:
                    return  # what is left of the deadline no longer matters
                item = await asyncio.wait_for(anext(self._source, None), max(end - loop.time(), 0.0))
        except asyncio.TimeoutError:
            self.is_whole = True
            late = DeadlineError(f"no answer within {deadline_s:g} s", deadline_s)
            yield _event("error", self._describe(late))
        except Exception as error:
            self.is_whole = True
            yield _event("error", self._describe(error))
        finally:
            await self._source.aclose()


class _EventResponse(StreamingResponse):
    """Closes its events in any case: where sending ends in an error, Starlette leaves them as they are.

    A client that goes before the end is no error to Starlette; the request's record says so here.
    """

    def __init__(self, stream: EventStream, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._stream, self._events = stream, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See StreamingResponse."""
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            if not self._stream.is_whole:
                record = record_of(scope)
                record.code = record.code or TABLE[ClientGoneError].code


def _event(name: str, data: BaseModel) -> bytes:
    return f"event: {name}\ndata: {data.model_dump_json(exclude_none=True)}\n\n".encode()

"""A model and the one thread that computes with it: batches form from what waits when the thread becomes free.

The event loop only queues and is told; it never computes. While a batch computes the next one fills, so a batch is as
large as the load makes it, up to its limit, and at low load a picture waits for nobody. `@serve.batch` closes a batch
by the clock instead, whether or not the model is free, and so under load puts many small ones in a queue.

Streams advance by one word between two batches, and at most one of them is encoded there, so neither holds up the other
for long.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from caption_ray.config import Settings
from caption_ray.inference import Captioner
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.compute import caption_batch, stream_words

StreamEvent = GreedyWord | CaptionedPicture

# A bound that a command line shares with the setting that it gives.
BatchSize = Annotated[int, Field(ge=1, le=1024)]


class BatchOptions(Settings):
    """How batches are formed; may be changed while the engine runs."""

    max_batch_size: BatchSize = Field(16, description="Most pictures that go through the model at once.")
    batch_wait_s: float = Field(
        0.0, ge=0, le=1, description="Time that an idle model waits for more pictures after the first, seconds."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch, done: its pictures' captions, and the seconds that the model took."""

    answers: Sequence[CaptionedPicture]
    model_s: float


@dataclass(slots=True, kw_only=True)
class _Waiting:
    picture: Square
    beam_width: int | None
    since: float
    future: "Future[CaptionedPicture]" = field(default_factory=Future)


@dataclass(slots=True, kw_only=True)
class _Stream:
    picture: Square
    send: Callable[[StreamEvent | Exception], None]
    words: Iterator[StreamEvent] | None = None
    dropped: bool = False


class Engine:
    """Computes captions on a thread of its own. `captioner` may be replaced at any time, by one assignment.

    num_threads: of torch on a CPU; None leaves it as torch or OMP_NUM_THREADS has it. May be set at any time.
    num_failures: batches in a row, up to now, that raised.
    observe: told of each batch, on the engine's thread.
    """

    def __init__(
        self, captioner: Captioner, options: BatchOptions, observe: Callable[[BatchRecord], None] | None = None
    ) -> None:
        self.captioner = captioner
        self.options = options
        self.num_threads: int | None = None
        self.num_failures = 0
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._streams: list[_Stream] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions; those of one call may be computed in different batches.

        A call that is cancelled leaves the queue. Raises BackendUnavailableError when closed.
        """
        now = time.monotonic()
        items = [_Waiting(picture=picture, beam_width=beam_width, since=now) for picture in pictures]
        with self._changed:
            self._check_open()
            self._waiting.extend(items)
            self._changed.notify()
        return list(await asyncio.gather(*(asyncio.wrap_future(item.future) for item in items)))

    async def stream(self, picture: Square) -> AsyncGenerator[StreamEvent, None]:
        """Yield the words of a greedy caption as they are found, and at last the whole. Closing it ends the work."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[StreamEvent | Exception]()

        def send(event: StreamEvent | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        stream = _Stream(picture=picture, send=send)
        with self._changed:
            self._check_open()
            self._streams.append(stream)
            self._changed.notify()
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, CaptionedPicture):
                    return
        finally:
            stream.dropped = True

    def close(self) -> None:
        """End the thread after the batch that it computes; what waits is told that no model is there."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailableError("the model has been shut down")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._streams or self._closed)
                if self._closed:
                    break
            if self.num_threads:
                torch.set_num_threads(self.num_threads)  # here, since it holds for the calling thread alone
            self._advance_streams()
            if batch := self._draw():
                self._compute(batch)
        gone = BackendUnavailableError("the model has been shut down")
        for item in self._waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(gone)
        for stream in self._streams:
            stream.send(gone)

    def _draw(self) -> list[_Waiting]:
        """Take what waits, up to a batch. Waits for more only where no stream would have to wait with it."""
        with self._changed:
            options = self.options
            if self._waiting and not self._streams:
                due = self._waiting[0].since + options.batch_wait_s
                self._changed.wait_for(
                    lambda: len(self._waiting) >= options.max_batch_size or self._streams or self._closed,
                    timeout=max(0.0, due - time.monotonic()),
                )
            drawn = [self._waiting.popleft() for _ in range(min(len(self._waiting), options.max_batch_size))]
        return [item for item in drawn if item.future.set_running_or_notify_cancel()]

    def _compute(self, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        try:
            answers = caption_batch(self.captioner, [(item.picture, item.beam_width) for item in batch])
            if self._observe:
                self._observe(BatchRecord(answers=answers, model_s=time.monotonic() - started))
        except Exception as error:  # whatever the model raises is its callers' to handle, not this thread's end
            self.num_failures += 1
            for item in batch:
                item.future.set_exception(error)
            return
        self.num_failures = 0
        for item, answer in zip(batch, answers, strict=True):
            item.future.set_result(answer)

    def _advance_streams(self) -> None:
        may_encode = True
        for stream in list(self._streams):
            if stream.words is None and not stream.dropped:
                if not may_encode:
                    continue
                may_encode = False
                stream.words = stream_words(self.captioner, stream.picture)
            if stream.dropped or not self._advance(stream):
                with self._changed:
                    self._streams.remove(stream)

    @staticmethod
    def _advance(stream: _Stream) -> bool:
        """Send a stream's next word; return whether there may be more."""
        try:
            event = next(stream.words or iter(()))
        except Exception as error:  # as in _compute
            stream.send(error)
            return False
        stream.send(event)
        return isinstance(event, GreedyWord)

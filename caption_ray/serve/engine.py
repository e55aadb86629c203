"""A model and the threads that compute with it: batches form from what waits when a thread becomes free.

The event loop only queues and is told; it never computes. While a batch computes the next one fills, so a batch is as
large as the load makes it, up to its limit, and at low load a picture waits for nobody (see batching.py).
`@serve.batch` closes a batch by the clock instead, whether or not the model is free, and so under load puts many small
ones in a queue.

On a CPU each thread computes batches of its own, by itself. Two that share a batch wait for each other after every
operation, and where anything else runs on their cores, as those that speak HTTP do, they mostly wait. Only a batch that
leaves the others nothing to do is shared, so that a single client is answered sooner; it is always the first thread's,
since OpenMP keeps a pool for each that ever shared one, and with more threads in pools than cores none waits for work
by spinning any more.

Streams advance by one word between two batches of the first thread, and at most one of them is encoded there, so
neither holds up the other for long.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from caption_ray.inference import Captioner
from caption_ray.serve.backend import BackendUnavailableError, CaptionedPicture, GreedyWord, Square
from caption_ray.serve.batching import BatchOptions, Load
from caption_ray.serve.compute import caption_batch, stream_words

logger = logging.getLogger(__name__)

StreamEvent = GreedyWord | CaptionedPicture


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch, done: its pictures' captions, and the seconds that the model took."""

    answers: Sequence[CaptionedPicture]
    model_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    picture: Square
    beam_width: int | None
    since: float
    future: "Future[CaptionedPicture]" = field(default_factory=Future)


@dataclass(slots=True, kw_only=True, eq=False)  # each is itself: pictures, compared, are no truth value
class _Stream:
    picture: Square
    send: Callable[[StreamEvent | Exception], None]
    words: Iterator[StreamEvent] | None = None
    dropped: bool = False


class Engine:
    """Computes captions on threads of its own. `captioner` and `options` may be replaced at any time, by assignment.

    num_failures: batches and streams in a row, up to now, that raised: batches for every picture, also by itself.
    observe: told of each batch, on the thread that has computed it.
    """

    def __init__(
        self, captioner: Captioner, options: BatchOptions, observe: Callable[[BatchRecord], None] | None = None
    ) -> None:
        self.captioner = captioner
        self.num_failures = 0
        self._options = options
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._streams: list[_Stream] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._load = Load()
        self._begun: dict[int, float] = {}  # when the others were given what they do
        self._start_threads()

    @property
    def options(self) -> BatchOptions:
        """How batches are formed now."""
        return self._options

    @options.setter
    def options(self, options: BatchOptions) -> None:
        with self._changed:
            self._options = options
            self._start_threads()
            self._changed.notify_all()

    @property
    def is_running(self) -> bool:
        """Whether the threads are alive."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def busy_s(self) -> float:
        """For how long the thread that has been at it longest has computed what it does now, seconds."""
        now = time.monotonic()
        return max((now - begun for begun in list(self._begun.values())), default=0.0)

    def _num_threads(self) -> int:
        return self._options.num_threads if self.captioner.device.type == "cpu" else 1

    def _start_threads(self) -> None:
        """Start those that are missing. Those that are too many never get anything to do."""
        for number in range(len(self._threads), self._num_threads()):
            thread = threading.Thread(target=self._run, args=(number,), name=f"captions-{number}", daemon=True)
            thread.start()  # which the system may refuse
            self._threads.append(thread)

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions; those of one call may be computed in different batches.

        A call that is cancelled leaves the queue. Raises BackendUnavailableError when closed.
        """
        now = time.monotonic()
        items = [_Waiting(picture=picture, beam_width=beam_width, since=now) for picture in pictures]
        with self._changed:
            self.check_open()
            self._load.ask(len(items))
            self._waiting.extend(items)
            self._changed.notify_all()
        answers = [asyncio.wrap_future(item.future) for item in items]
        try:
            return list(await asyncio.gather(*answers))
        finally:
            for answer in answers:  # of the others, where one has failed: nobody would read them
                answer.cancel()

    async def stream(self, picture: Square) -> AsyncGenerator[StreamEvent, None]:
        """Yield the words of a greedy caption as they are found, and at last the whole. Closing it ends the work."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[StreamEvent | Exception]()

        def send(event: StreamEvent | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(events.put_nowait, event)

        stream = _Stream(picture=picture, send=send)
        with self._changed:
            self.check_open()
            self._streams.append(stream)
            self._changed.notify_all()
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
        """End the threads after the batches that they compute; what waits is told that no model is there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        gone = BackendUnavailableError("the model has been shut down")
        for item in self._waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(gone)
        for stream in self._streams:
            stream.send(gone)

    def check_open(self) -> None:
        """Raise BackendUnavailableError where it is closed, or a thread has ended: it would be waited for in vain."""
        if self._closed:
            raise BackendUnavailableError("the model has been shut down")
        if not self.is_running:
            raise BackendUnavailableError("a thread that computes captions has ended; start the service anew")

    def _run(self, number: int) -> None:
        # At first use in a thread torch takes the number that was set last in any; after that, this thread's own.
        torch.get_num_threads()
        while True:
            with self._changed:
                self._load.computing.pop(number, None)
                self._begun.pop(number, None)
                self._changed.wait_for(lambda: self._closed or self._has_work(number))
                if self._closed:
                    return
                self._begun[number] = time.monotonic()
                if has_streams := self._has_streams(number):
                    self._load.computing[number] = 0
                    self._changed.notify_all()  # what waits is the others' meanwhile
            if has_streams:
                self._use_threads(1)
                self._advance_streams()
            batch, num_threads = self._draw(number)
            if batch:
                self._use_threads(num_threads)
                self._compute(number, batch)

    def _has_work(self, number: int) -> bool:
        """Tell whether a thread has something to do. What the first can do at once is not for the others."""
        if number == 0:
            return bool(self._waiting or self._streams)
        return number < self._num_threads() and bool(self._waiting) and 0 in self._load.computing

    def _has_streams(self, number: int) -> bool:
        return number == 0 and bool(self._streams)

    def _use_threads(self, number: int) -> None:
        if self.captioner.device.type == "cpu":
            torch.set_num_threads(number)  # of the calling thread alone

    def _draw(self, number: int) -> tuple[list[_Waiting], int]:
        """Take this thread's share of what waits, and tell with how many threads to compute it.

        Waits for more only where no stream would have to wait with it.
        """
        with self._changed:
            load, num_threads = self._load, self._num_threads()
            while self._waiting and not self._closed and not self._has_streams(number):
                since = self._waiting[0].since
                wait_s = load.wait_s(number, len(self._waiting), since, num_threads, self.options, time.monotonic())
                if not wait_s:
                    break
                self._changed.wait(wait_s)
            now, num_waiting = time.monotonic(), len(self._waiting)
            share = load.share(number, num_waiting, num_threads, self.options, now)
            drawn = [self._waiting.popleft() for _ in range(min(share, num_waiting))]
            is_shared = number == 0 and load.whole(num_waiting, self.options, now) == len(drawn)
            if drawn:
                load.computing[number] = len(drawn)
                self._changed.notify_all()
        batch = [item for item in drawn if item.future.set_running_or_notify_cancel()]
        return batch, num_threads if is_shared else 1

    def _compute(self, number: int, batch: list[_Waiting]) -> None:
        errors = [self._answer(number, batch)]
        if errors[0] is not None and len(batch) > 1:  # it may be one picture's doing
            errors = [self._answer(number, [item]) for item in batch]
        if None not in errors:
            self.num_failures += 1
        for item, error in zip(batch, errors, strict=False):
            if error is not None:
                self._count_answered(number, 1)
                item.future.set_exception(error)

    def _answer(self, number: int, batch: list[_Waiting]) -> Exception | None:
        """Compute pictures together and answer them, or return the error where that fails."""
        started = time.monotonic()
        try:
            answers = caption_batch(self.captioner, [(item.picture, item.beam_width) for item in batch])
        except Exception as error:  # whatever the model raises is its callers' to handle, not this thread's end
            return error
        try:
            if self._observe:
                self._observe(BatchRecord(answers=answers, model_s=time.monotonic() - started))
        except Exception:
            logger.exception("a batch has not been counted")
        self.num_failures = 0
        self._count_answered(number, len(batch))
        for item, answer in zip(batch, answers, strict=True):
            item.future.set_result(answer)
        return None

    def _count_answered(self, number: int, num_pictures: int) -> None:
        """Before they are: those who asked may ask again at once."""
        with self._changed:
            self._load.answer(number, num_pictures, time.monotonic())

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

    def _advance(self, stream: _Stream) -> bool:
        """Send a stream's next word; return whether there may be more."""
        try:
            event = next(stream.words or iter(()))
        except Exception as error:  # as in _compute
            self.num_failures += 1
            stream.send(error)
            return False
        if isinstance(event, CaptionedPicture):
            self.num_failures = 0
        stream.send(event)
        return isinstance(event, GreedyWord)

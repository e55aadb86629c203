"""Captions computed in this process, without Ray: `python -m caption_ray.serve.local --bundle B`."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeVar

import uvicorn
from pydantic import Field
from torch import Tensor

from caption_ray.config import AskedPrecision, Settings
from caption_ray.entry import run_job
from caption_ray.inference import Caption, Captioner
from caption_ray.serve.access_log import configure_access_log
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.schemas import Limits, ModelAnswer

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A picture that waits for its captions."""

    square: Square
    beam_width: int | None
    captions: "asyncio.Future[CaptionedPicture]"


class LocalBackend:
    """Computes on one thread; what arrives while a batch is computed forms the next one.

    max_batch_size: pictures computed together.  max_queued: pictures that may wait, streams included.
    observe_batch: told the pictures and seconds of each batch.
    """

    def __init__(
        self,
        captioner: Captioner,
        *,
        max_batch_size: int = 16,
        max_queued: int = 64,
        retry_after_s: int = 1,
        observe_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._captioner = captioner
        self._max_batch_size, self._max_queued, self._retry_after_s = max_batch_size, max_queued, retry_after_s
        self._observe_batch = observe_batch
        self._model = describe(captioner)
        self._queue: deque[_Job] = deque()
        self._num_streams = 0
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "captioner")

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions. Cancelled while it waits, it is not computed."""
        self._check_room(len(pictures))
        loop = asyncio.get_running_loop()
        jobs = [_Job(square=square, beam_width=beam_width, captions=loop.create_future()) for square in pictures]
        self._queue.extend(jobs)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._compute_queue())
        return await asyncio.gather(*(job.captions for job in jobs))

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        """Yield the greedy caption's words, and at last the whole; other work goes on between them."""
        self._check_room(1)
        self._num_streams += 1
        try:
            side, words = self._model.grid_side, self._captioner.stream(picture, self._model.max_words)
            while not isinstance(found := await self._run(lambda: _next_or_whole(words)), Caption):
                text, log_probability, attention = found
                yield GreedyWord(
                    text=text, log_probability=log_probability, attention=attention.view(side, side).numpy()
                )
            yield CaptionedPicture(captions=(found,), model_id=self._model.id)
        finally:
            self._num_streams -= 1

    async def model(self) -> ModelAnswer:
        """Describe the model."""
        return self._model

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_room(self, num_pictures: int) -> None:
        if len(self._queue) + self._num_streams + num_pictures > self._max_queued:
            raise OverloadedError(self._retry_after_s)

    async def _compute_queue(self) -> None:
        while self._queue:
            batch: list[_Job] = []
            while self._queue and len(batch) < self._max_batch_size:
                job = self._queue.popleft()
                if not job.captions.done():  # else whoever asked has gone
                    batch.append(job)
            if batch:
                await self._compute(batch)

    async def _compute(self, batch: Sequence[_Job]) -> None:
        squares = [job.square for job in batch]
        bundle_options = self._captioner.bundle.config.decode
        options = [bundle_options.changed(beam_width=job.beam_width) for job in batch]
        started = time.perf_counter()
        try:
            found = await self._run(lambda: self._captioner.caption_each(squares, options))
        except Exception as error:
            for job in batch:
                if not job.captions.done():
                    job.captions.set_exception(error)
            return
        if self._observe_batch is not None:
            self._observe_batch(len(batch), time.perf_counter() - started)
        for job, captions in zip(batch, found, strict=True):
            if not job.captions.done():
                job.captions.set_result(CaptionedPicture(captions=tuple(captions), model_id=self._model.id))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _next_or_whole(
    words: Generator[tuple[str, float, Tensor], None, Caption],
) -> tuple[str, float, Tensor] | Caption:
    try:
        return next(words)
    except StopIteration as end:  # cannot cross a future
        whole: Caption = end.value
        return whole


def describe(captioner: Captioner, refused: str | None = None) -> ModelAnswer:
    """Return what the API says of a model that has just been loaded."""
    bundle = captioner.bundle
    return ModelAnswer(
        id=bundle.manifest.digest,
        name=bundle.manifest.name,
        location=bundle.location,
        loaded_at=datetime.now(timezone.utc),
        backbone=bundle.config.encoder.backbone,
        image_size=bundle.config.encoder.image_size,
        grid_side=bundle.config.encoder.image_size // 32,
        vocabulary_size=bundle.config.vocabulary_size,
        num_parameters=sum(weights.numel() for weights in bundle.model.parameters()),
        device=str(captioner.device),
        precision=captioner.precision,
        beam_width=bundle.config.decode.beam_width,
        max_words=bundle.config.decode.max_words,
        metrics=bundle.metrics,
        refused=refused,
    )


class Arguments(Settings):
    """Serve captions over HTTP, and a page, from this process alone."""

    bundle: str = Field(description="Bundle to caption with: a folder, or a URI such as gs://bucket/bundle.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    max_batch_size: int = Field(16, ge=1, description="Pictures computed together.")
    max_queued: int = Field(64, ge=1, description="Pictures that may wait for their batch.")
    precision: AskedPrecision = Field("auto", description="Of the encoder; 'auto' takes bf16 where that is faster.")


def main(arguments: Arguments) -> dict[str, object]:
    """Serve until interrupted. API keys are read from CAPTION_RAY_API_KEYS, separated by commas."""
    configure_access_log()
    metrics, limits = ServiceMetrics(), Limits()
    backend = LocalBackend(
        Captioner.load(arguments.bundle, precision=arguments.precision),
        max_batch_size=arguments.max_batch_size,
        max_queued=arguments.max_queued,
        retry_after_s=limits.retry_after_s,
        observe_batch=metrics.observe_batch,
    )
    app = create_app(backend, limits, api_keys=read_api_keys(), metrics=metrics)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False)
    return {"served": arguments.bundle}


def read_api_keys() -> list[str]:
    """Return the keys in CAPTION_RAY_API_KEYS, separated by commas."""
    return [key.strip() for key in os.environ.get("CAPTION_RAY_API_KEYS", "").split(",") if key.strip()]


if __name__ == "__main__":
    run_job(main, Arguments)

"""Captions computed in this process, without Ray: `python -m caption_ray.serve.local --bundle B`."""

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import datetime, timezone

import uvicorn
from pydantic import Field

from caption_ray.config import AskedPrecision, Settings
from caption_ray.entry import run_job
from caption_ray.inference import Captioner
from caption_ray.serve.access_log import configure_access_log
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.compute import describe
from caption_ray.serve.engine import BatchOptions, Engine
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.schemas import Limits, ModelAnswer


class LocalBackend:
    """Computes on one thread of this process.

    max_batch_size: pictures computed together.  max_queued: pictures that may wait or be computed, streams included.
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
        self._engine = Engine(captioner, BatchOptions(max_batch_size=max_batch_size), observe_batch)
        self._max_queued, self._retry_after_s = max_queued, retry_after_s
        self._model = describe(captioner, datetime.now(timezone.utc), refused=None)
        self._num_queued = 0

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions. Cancelled while it waits, it is not computed."""
        with self._room(len(pictures)):
            return await self._engine.caption(pictures, beam_width)

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        """Yield the greedy caption's words, and at last the whole; other work goes on between them."""
        with self._room(1):
            async with aclosing(self._engine.stream(picture)) as events:
                async for event in events:
                    yield event

    async def model(self) -> ModelAnswer:
        """Describe the model."""
        return self._model

    def close(self) -> None:
        """Let the thread end."""
        self._engine.close()

    @contextmanager
    def _room(self, num_pictures: int) -> Iterator[None]:
        if self._num_queued + num_pictures > self._max_queued:
            raise OverloadedError(self._retry_after_s)
        self._num_queued += num_pictures
        try:
            yield
        finally:
            self._num_queued -= num_pictures


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

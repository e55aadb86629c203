"""Captions computed in this process, without Ray: `python -m caption_ray.serve.local --bundle B`."""

import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import uvicorn
from pydantic import Field

from caption_ray.bundle import BUNDLE_VARIABLE
from caption_ray.config import AskedPrecision, Settings
from caption_ray.entry import run_job
from caption_ray.errors import UsageError
from caption_ray.inference import Captioner
from caption_ray.serve.access_log import configure_access_log
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, Square
from caption_ray.serve.batching import BatchOptions, BatchSize, NumThreads
from caption_ray.serve.compute import describe, load_captioner
from caption_ray.serve.engine import BatchRecord, Engine
from caption_ray.serve.head_timeout import HeadTimeoutProtocol
from caption_ray.serve.metrics import BatchMetrics, ServiceMetrics
from caption_ray.serve.middleware import api_keys_from_environment
from caption_ray.serve.places import Places
from caption_ray.serve.schemas import Limits, ModelAnswer

logger = logging.getLogger("caption_ray.serve.local")  # run as a program it has another name


class LocalBackend:
    """A model in this process, with bounds on what waits for it.

    max_queued: pictures that may be in the model or wait for it, streams included.  observe: as of Engine.
    """

    def __init__(
        self,
        captioner: Captioner,
        options: BatchOptions | None = None,
        *,
        max_queued: int = 64,
        retry_after_s: int = 1,
        observe: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        self._engine = Engine(captioner, options or BatchOptions.model_validate({}), observe)
        self._model = describe(captioner, datetime.now(timezone.utc), None)
        self._places = Places(max_queued, retry_after_s)

    async def caption(self, pictures: Sequence[Square], beam_width: int | None) -> list[CaptionedPicture]:
        """Return each picture's captions. Cancelled while it waits, it is not computed."""
        with self._places.taken_by(len(pictures)):
            return await self._engine.caption(pictures, beam_width)

    async def stream(self, picture: Square) -> AsyncGenerator[GreedyWord | CaptionedPicture, None]:
        """Yield the greedy caption's words, and at last the whole; other work goes on between them."""
        with self._places.taken_by(1):
            async for event in self._engine.stream(picture):
                yield event

    async def model(self) -> ModelAnswer:
        """Describe the model. Raises BackendUnavailableError where it has ended."""
        self._engine.check_open()
        return self._model

    def close(self) -> None:
        """End the computing."""
        self._engine.close()


CONNECTION_OPTIONS: dict[str, Any] = {
    # By h11, which refuses headers of much more than 64 KiB; httptools, which uvicorn would choose, takes in any.
    "http": HeadTimeoutProtocol,
    # A protocol of its own, without these limits, which any client may ask for.
    "ws": "none",
    # Its warnings are of what clients send.
    "log_level": "error",
}
"""What uvicorn is told of connections from strangers."""


class Arguments(Settings):
    """Serve captions over HTTP, and a page, from this process alone."""

    bundle: str | None = Field(
        None,
        description=f"Bundle to caption with, a folder or a URI such as gs://bucket/b; by default {BUNDLE_VARIABLE}.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")
    max_batch_size: BatchSize = Field(16, description="Pictures computed together.")
    num_threads: NumThreads = Field(2, description="Threads that compute on a CPU, each on batches of its own.")
    max_queued: int = Field(
        64, ge=Limits().max_pictures, description="Pictures that may be in the model or wait for it."
    )
    precision: AskedPrecision = Field(
        "auto", description="Of what is multiplied; 'auto' takes bf16 where that is faster and does no harm."
    )


def main(arguments: Arguments) -> dict[str, object]:
    """Serve until interrupted. API keys are read from CAPTION_RAY_API_KEYS, separated by commas."""
    bundle = arguments.bundle or os.environ.get(BUNDLE_VARIABLE)
    if not bundle:
        raise UsageError(f"no bundle is named: name one by --bundle, or by {BUNDLE_VARIABLE}")
    configure_access_log()
    metrics, limits = ServiceMetrics(), Limits()
    batches = BatchMetrics(metrics.exporter)
    backend = LocalBackend(
        load_captioner(bundle, arguments.precision),
        BatchOptions(max_batch_size=arguments.max_batch_size, num_threads=arguments.num_threads),
        max_queued=arguments.max_queued,
        retry_after_s=limits.retry_after_s,
        observe=lambda batch: batches.observe(len(batch.answers), batch.model_s),
    )
    app = create_app(backend, limits, api_keys=api_keys_from_environment(), metrics=metrics)
    config = uvicorn.Config(
        app, access_log=False, timeout_graceful_shutdown=int(limits.deadline_s) + 5, **CONNECTION_OPTIONS
    )
    server = uvicorn.Server(config)
    try:
        with _listening(arguments.host, arguments.port) as listener, suppress(KeyboardInterrupt):
            server.run([listener])
    finally:
        backend.close()  # a thread that still computed when Python ends would have the process abort
    return {"served": bundle}


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address, and tell which that is. Raises UsageError where none can."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--host {host} --port {port}: {reason}; choose another, or port 0 for a free one") from error
    where = f"[{host}]" if ":" in host else host
    logger.info("captions, and a page, at http://%s:%d/", where, listener.getsockname()[1])
    return listener


if __name__ == "__main__":
    run_job(main, Arguments)

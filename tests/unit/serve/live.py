"""The app on loopback under uvicorn, as the tests talk to it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette

from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionBackend
from caption_ray.serve.schemas import Limits


@contextmanager
def running(app: Starlette) -> Iterator[int]:
    """Serve an app on a free port of this machine, in a thread, and give the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def client_of(backend: CaptionBackend, limits: Limits | None = None, **options: object) -> Iterator[httpx.Client]:
    with (
        running(create_app(backend, limits, **options)) as port,  # type: ignore[arg-type]
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield client

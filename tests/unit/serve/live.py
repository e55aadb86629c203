"""The app on loopback under uvicorn, as the tests talk to it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from caption_ray.serve.app import create_app
from caption_ray.serve.backend import CaptionBackend
from caption_ray.serve.schemas import Limits


class _PromptServer(uvicorn.Server):
    """Ends at once: uvicorn's own looks for that ten times a second, and then waits a tenth of a second more."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            _, unfinished = await asyncio.wait(self.server_state.tasks, timeout=1)
            for task in unfinished:
                task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def running(app: Starlette, **options: Any) -> Iterator[int]:
    """Serve an app on a free port of this machine, in a thread, and give the port. options: of uvicorn."""
    server = _PromptServer(uvicorn.Config(app, port=0, log_config=None, access_log=False, **options))
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


def head(path: str, *lines: str) -> bytes:
    """Return the head of a POST request, for those who write to the socket themselves."""
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", *lines, "", "")).encode()

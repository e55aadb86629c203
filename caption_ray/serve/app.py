"""The HTTP app: routes over a backend of which it knows the protocol alone, so that it runs with and without Ray."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from caption_ray.serve.access_log import RequestRecord, record_of
from caption_ray.serve.backend import CaptionBackend, OverloadedError
from caption_ray.serve.errors import INTERNAL, TABLE, ClientGoneError, DeadlineError, refuse
from caption_ray.serve.lingering import LingerMiddleware
from caption_ray.serve.metrics import CONTENT_TYPE, ServiceMetrics
from caption_ray.serve.middleware import ApiKeyMiddleware, RecordMiddleware, is_bare_prefix
from caption_ray.serve.openapi import build_openapi
from caption_ray.serve.pages import render_docs, render_page
from caption_ray.serve.pictures import DecodedPicture, PictureDecoder
from caption_ray.serve.reading import BufferBudget, largest_body, parse_query, read_picture, read_pictures
from caption_ray.serve.schemas import BatchAnswer, ErrorAnswer, HealthAnswer, Limits
from caption_ray.serve.service import CaptionService
from caption_ray.serve.streaming import EventStream

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_QUERY = frozenset({"beam_width", "num_captions", "attention"})
_STREAM_QUERY = frozenset({"attention"})
Result = TypeVar("Result")


def create_app(
    backend: CaptionBackend,
    limits: Limits | None = None,
    *,
    api_keys: Sequence[str] = (),
    metrics: ServiceMetrics | None = None,
    decode_threads: int = 2,
    max_waiting: int | None = None,
    max_buffered_bytes: int | None = None,
) -> Starlette:
    """Return the app.

    api_keys: if there are any, all but the pages, their parts and the health checks need one.
    metrics: by default those of this process, which GET /metrics tells.  decode_threads: pictures decoded at a time.
    max_waiting: pictures that may wait to be decoded, 64 by default.  max_buffered_bytes: of all bodies in memory
    together, 256 MiB by default; what is over either is refused as overload. The defaults have room for whatever the
    limits let a single request bring.
    """
    limits, metrics = limits or Limits(), metrics or ServiceMetrics()
    logger.info("%d API keys%s", len(api_keys), "" if api_keys else ": whoever reaches the service may use it")
    max_waiting = max(64, limits.max_pictures) if max_waiting is None else max_waiting
    if max_buffered_bytes is None:
        max_buffered_bytes = max(256 << 20, largest_body(limits))
    decoder = PictureDecoder(limits, decode_threads, max_waiting)
    routes = _Routes(
        CaptionService(backend, decoder, limits, metrics),
        BufferBudget(max_buffered_bytes, limits.retry_after_s),
        limits,
        metrics,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        decoder.close()

    table: list[Route | Mount] = [
        *(Route(path, getattr(routes, name), methods=[method]) for path, method, name in _TABLE),
        Mount("/static", app=StaticFiles(directory=STATIC)),
    ]
    app = Starlette(
        routes=table,
        middleware=[
            Middleware(LingerMiddleware),
            Middleware(RecordMiddleware, routes=table, metrics=metrics, limits=limits),
            Middleware(ApiKeyMiddleware, api_keys=api_keys, limits=limits),
        ],
        exception_handlers=dict.fromkeys((*TABLE, HTTPException), routes.on_error),
        lifespan=lifespan,
    )
    # Else a slash too many redirects to what this process takes for its address: plain http, behind what does TLS.
    app.router.redirect_slashes = False
    app.router.default = _PageBelow(app.router.default)
    return app


class _PageBelow:
    """Sends whoever asks for the prefix that the app is served under, without a slash, to the page there."""

    def __init__(self, otherwise: ASGIApp) -> None:
        self.otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_bare_prefix(scope):
            page = RedirectResponse(
                f"{scope['path'].rpartition('/')[2]}/"
            )  # relative, whatever the address before a proxy
            await page(scope, receive, send)
        else:
            await self.otherwise(scope, receive, send)


_TABLE = (
    ("/v1/captions", "POST", "caption"),
    ("/v1/captions/batch", "POST", "batch"),
    ("/v1/captions/stream", "POST", "stream"),
    ("/v1/model", "GET", "model"),
    ("/healthz", "GET", "healthz"),
    ("/readyz", "GET", "readyz"),
    ("/metrics", "GET", "metrics"),
    ("/openapi.json", "GET", "openapi"),
    ("/docs", "GET", "docs"),
    ("/", "GET", "page"),
)


class _Routes:
    """The app's endpoints."""

    def __init__(self, service: CaptionService, budget: BufferBudget, limits: Limits, metrics: ServiceMetrics) -> None:
        self._service, self._budget, self._limits, self._metrics = service, budget, limits, metrics
        self._document = build_openapi(limits)
        self._docs, self._page = render_docs(self._document), render_page(limits)

    async def caption(self, request: Request) -> Response:
        """Caption one picture."""
        query, record = parse_query(request, self._limits, _QUERY), record_of(request.scope)
        await self._service.check(query)
        decoded, started = await self._read_and_decode(request, record)
        work = self._service.caption([decoded], query, record, started)
        (answer,) = await self._while_connected(request, work)
        return _json(answer)

    async def batch(self, request: Request) -> Response:
        """Caption several pictures."""
        query, record = parse_query(request, self._limits, _QUERY), record_of(request.scope)
        await self._service.check(query)
        with self._budget.share() as share:
            sent = await read_pictures(request, self._limits, share)
            started = time.perf_counter()
            names = [picture.name for picture in sent]
            record.num_pictures = len(sent)
            decoded = await self._while_connected(request, self._service.decode_all(sent, record))
            del sent
        work = self._service.batch(names, decoded, query, record, started)
        return _json(BatchAnswer(results=await self._while_connected(request, work)))

    async def stream(self, request: Request) -> Response:
        """Caption one picture a word at a time."""
        query, record = parse_query(request, self._limits, _STREAM_QUERY), record_of(request.scope)
        decoded, started = await self._read_and_decode(request, record)
        events = EventStream(self._service.stream(decoded, query, record, started), self._refuse_midway(record))
        # What fails before the first word still has a status of its own.
        await self._while_connected(request, events.start())
        return events.response(self._remaining_s(record), self._limits.deadline_s)

    async def _read_and_decode(self, request: Request, record: RequestRecord) -> tuple[DecodedPicture, float]:
        """Return a request's one picture, and when its body had arrived; the body's memory is free again by then."""
        with self._budget.share() as share:
            sent = await read_picture(request, self._limits, share)
            record.num_pictures = 1
            started = time.perf_counter()
            return await self._while_connected(request, self._service.decode(sent, record)), started

    def _refuse_midway(self, record: RequestRecord) -> Callable[[Exception], ErrorAnswer]:
        def refuse_midway(error: Exception) -> ErrorAnswer:
            refused = refuse(error, self._limits, record.request_id)
            record.code = refused.detail.code
            if record.code == INTERNAL.code:  # as the middleware does before there is an answer
                logger.error("request %s failed", record.request_id, exc_info=error)
            return refused.answer

        return refuse_midway

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        parse_query(request, self._limits, frozenset())
        return _json(await self._while_connected(request, self._service.model.now()))

    async def healthz(self, request: Request) -> Response:
        """Say that the process lives."""
        parse_query(request, self._limits, frozenset())
        return _json(HealthAnswer(status="ok"))

    async def readyz(self, request: Request) -> Response:
        """Say whether there is a model to answer; one that has too much to do is one."""
        parse_query(request, self._limits, frozenset())
        with suppress(OverloadedError):
            await self._while_connected(request, self._service.model.now())
        return _json(HealthAnswer(status="ready"))

    async def metrics(self, _: Request) -> Response:
        """Tell Prometheus."""
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        """Return the API's description for programs."""
        return JSONResponse(self._document)

    async def docs(self, _: Request) -> Response:
        """Return it for people."""
        return HTMLResponse(self._docs)

    async def page(self, _: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self._page, headers={"Cache-Control": "no-cache"})

    async def on_error(self, request: Request, error: Exception) -> Response:
        """Answer what is in the table."""
        record = record_of(request.scope)
        refused = refuse(error, self._limits, record.request_id)
        record.code = refused.detail.code
        return refused.response()

    def _remaining_s(self, record: RequestRecord) -> float:
        return max(record.started + self._limits.deadline_s - time.perf_counter(), 0.0)

    async def _while_connected(self, request: Request, work: Coroutine[Any, Any, Result]) -> Result:
        """Await work on a request whose body has been read, dropping it when the client hangs up or time is up."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            remaining_s = self._remaining_s(record_of(request.scope))
            await asyncio.wait({task, gone}, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGoneError("the client hung up")
            raise DeadlineError(f"no answer within {self._limits.deadline_s:g} s", self._limits.deadline_s)
        finally:
            for future in (task, gone):
                future.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

"""What happens to every request: an id, a line in the log, security headers, the API key, an answer to every fault."""

import asyncio
import hashlib
import hmac
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caption_ray.errors import UsageError
from caption_ray.serve.access_log import RequestRecord, access_log, keep_record, record_of
from caption_ray.serve.errors import UnauthorisedError, refuse
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.schemas import Limits

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

KEYS_VARIABLE = "CAPTION_RAY_API_KEYS"

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_bare_prefix(scope: Scope) -> bool:
    """Tell whether the prefix that the app is served under is asked for, without a slash."""
    prefix: str = scope.get("root_path", "")
    return bool(prefix) and scope["path"] == prefix


class RecordMiddleware:
    """Gives the request its id, counts and logs it, and answers what nobody else has answered.

    X-Request-ID is taken over if it is 1 to 64 letters, digits, dots, dashes and underscores, and else made anew.
    routes: those of the app; what logs and metrics say is the path of the route, not that of the request.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route | Mount], metrics: ServiceMetrics, limits: Limits) -> None:
        self.app, self.routes, self.metrics, self.limits = app, routes, metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex)
        # Here, not where the request is routed: what is refused before that has been meant for a route too.
        otherwise = "/" if is_bare_prefix(scope) else "other"  # sent on to the page, which needs no key
        record.route = next((route.path for route in self.routes if route.matches(scope)[0] != Match.NONE), otherwise)
        keep_record(scope, record)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = record.status or message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                # The page's parts are kept, and asked for by their ETag: they change with the service's version.
                headers.setdefault("Cache-Control", "no-cache" if record.route == "/static" else "no-store")
            await _send_in_time(send, message, record.started + 2 * self.limits.deadline_s - time.perf_counter())

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        except _UnreadError:
            record.code = record.code or "client_gone"  # and what was sent of the answer is all that is sent
        except Exception as error:
            if record.status:  # the answer is under way; all that is left is to break it off
                raise
            logger.exception("request %s failed", record.request_id)
            refused = refuse(error, self.limits, record.request_id)
            record.code = refused.detail.code
            await refused.response()(scope, receive, send_with_headers)
        finally:
            self.metrics.in_flight.dec()
            self._count(record, scope["method"])

    def _count(self, record: RequestRecord, method: str) -> None:
        if not record.status:  # cancelled before there was an answer
            record.status, record.code = 499, record.code or "client_gone"
        # Whoever sends requests chooses the method; it must not choose how many series there are.
        method = method if method in ("GET", "HEAD", "POST") else "other"
        self.metrics.requests.labels(record.route, method, str(record.status)).inc()
        # What was refused before its pictures were read counts as one. None may be left, and Ray's counters take no 0.
        num_failed = max(record.num_pictures, 1) - record.num_answered if record.code else 0
        if num_failed and method == "POST" and record.route.startswith("/v1/captions"):
            self.metrics.captions.labels(record.code or "").inc(num_failed)
        self.metrics.request_seconds.labels(record.route).observe(time.perf_counter() - record.started)
        access_log.info("%s", record.line(method))


class _UnreadError(Exception):
    """The client does not take its answer."""


async def _send_in_time(send: Send, message: Message, limit_s: float) -> None:
    """Send a part of an answer. Raises _UnreadError where the client has not read what was sent before for so long.

    By a timer, not by `wait_for`: that would make a task of each sending, and nearly all of them do not wait at all.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    timer = loop.call_later(max(limit_s, 0.0), task.cancel)
    try:
        await send(message)
    except asyncio.CancelledError:
        if loop.time() < timer.when():
            raise  # somebody else's doing
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise _UnreadError from None
    finally:
        timer.cancel()


class ApiKeyMiddleware:
    """Refuses requests without one of the keys, but for open routes. Without keys everything is open.

    A key is sent as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Only digests are kept, and the time that comparing
    takes depends neither on the key nor on which of them it is.
    """

    OPEN_ROUTES = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static"})

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], limits: Limits) -> None:
        self.app, self.limits = app, limits
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http" and self._digests and record_of(scope).route not in self.OPEN_ROUTES:
            headers = Headers(scope=scope)
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
            if not self._knows(given):
                record = record_of(scope)
                message = "the API key is not known" if given else "an API key is needed, as Authorization: Bearer KEY"
                refused = refuse(UnauthorisedError(message), self.limits, record.request_id)
                record.code = refused.detail.code
                await refused.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _knows(self, given: str) -> bool:
        digest = hashlib.sha256(given.encode("latin-1")).digest()  # the bytes as they were sent
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def api_keys_from_environment() -> list[str]:
    """Return the keys in CAPTION_RAY_API_KEYS, separated by commas; for the processes that start an app.

    Raises UsageError where the variable is set and has none, since whoever set it did not mean to open the service to
    all, and for a key that clients would send in different bytes.
    """
    given = os.environ.get(KEYS_VARIABLE)
    if given is None:
        return []
    keys = [key.strip() for key in given.split(",") if key.strip()]
    if not keys:
        raise UsageError(f"{KEYS_VARIABLE} is set and has no key; name keys in it, apart by commas, or unset it")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UsageError(f"{KEYS_VARIABLE}: a key has characters beyond ASCII's printable ones; make it of those alone")
    return keys

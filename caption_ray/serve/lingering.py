"""Answers to requests whose body has not arrived in full, ended so that their clients read them.

A connection that is closed while bytes lie unread in it is reset, and the reset takes away the answer from a client
that has not read it yet; browsers read it only when they have sent all. Kept open instead, it would have to take in the
whole body before it can serve again. So the answer says that the connection ends, and goes out at once; then what still
comes is thrown away for a moment, before the connection is closed.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LingerMiddleware:
    """Ends the connection of a request that is answered before its body's end, in a way that clients bear.

    max_s, max_bytes: for how long, and how much of, what comes after the answer is thrown away before the connection is
    closed. The defaults take in a large photo or a short film in full.
    """

    def __init__(self, app: ASGIApp, max_s: float = 3.0, max_bytes: int = 64 << 20) -> None:
        self.app, self.max_s, self.max_bytes = app, max_s, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_whole, is_early = not _has_body(scope), False

        async def receive_to_the_end() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = is_whole or _is_last(message)
            return message

        async def send_all_but_the_end(message: Message) -> None:
            nonlocal is_early
            if message["type"] == "http.response.start" and not is_whole:
                is_early = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if message["type"] == "http.response.body" and is_early:
                message = {**message, "more_body": True}  # at its end the server would close the connection
            await send(message)

        await self.app(scope, receive_to_the_end, send_all_but_the_end)
        if is_early:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._discard(receive), self.max_s)
            await send({"type": "http.response.body", "body": b""})

    async def _discard(self, receive: Receive) -> None:
        num_bytes = 0
        while num_bytes < self.max_bytes:
            message = await receive()
            if _is_last(message):
                return
            num_bytes += len(message.get("body", b""))


def _is_last(message: Message) -> bool:
    return message["type"] == "http.disconnect" or not message.get("more_body", False)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

"""An end to connections on which nothing moves: uvicorn waits as long as the client likes, for the head of a request to
come, and for an answer to be taken.

The app's own limits (see schemas.Limits) begin when the head is there, and end when the app has done its part.
"""

import asyncio
import socket
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's protocol for HTTP/1.1, with an end to waiting.

    A connection is closed on which no head has come for `HEAD_TIMEOUT_S` seconds, or, on Linux, whose client has taken
    nothing of what was sent for `UNREAD_TIMEOUT_S`: uvicorn would await that in its own answers to faults, and when it
    ends itself.
    """

    HEAD_TIMEOUT_S = 10.0
    UNREAD_TIMEOUT_S = 60.0

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_head()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self.UNREAD_TIMEOUT_S))

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self._is_without_head():
            self._stop()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; amid another answer, as to a body that was refused at once, is no place for it."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """Wait for the next one; uvicorn has a limit until its first byte comes, and none after that."""
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._stop()
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self._close_if_late)

    def _close_if_late(self) -> None:
        if self._is_without_head():
            self.transport.close()

    def _is_without_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

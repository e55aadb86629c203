"""An end to connections that send no request: uvicorn waits for its head as long as the client likes.

The app's own limits (see schemas.Limits) begin when the head is there.
"""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's protocol for HTTP/1.1; closes a connection on which no head has come for `HEAD_TIMEOUT_S` seconds."""

    HEAD_TIMEOUT_S = 10.0

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self._is_without_head():
            self._stop()

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

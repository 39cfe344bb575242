"""HTTP/1.1 on one connection, with an end to how long and how large the head of a request may be.

uvicorn bounds neither: a client that never ends its headers holds a connection for ever, and one that sends
them for ever fills the memory. Bodies have limits of their own, in ``service.body`` and ``service.context``.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 64 * 2**10


class GuardedHttp(HttpToolsProtocol):
    """uvicorn's protocol; closes a connection whose next request does not come to the end of its headers."""

    _timer: asyncio.TimerHandle | None = None  # runs while a head is waited for
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and has said nothing yet."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request came; the first of a connection is waited for already."""
        if self._timer is None:
            self._wait_for_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole; what follows is a body."""
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a head or a body came."""
        of_head = self._timer is not None
        super().data_received(data)
        if of_head and self._timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")

    def _wait_for_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # a request sent ahead, behind one that is still being answered
            self._wait_for_head()

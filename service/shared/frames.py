"""Whole messages over a stream socket, in both directions."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import cast

_HEAD = struct.Struct("<IB")  # bytes of the body, kind

_LOG = logging.getLogger("clipserve.shared")


class MalformedMessageError(ValueError):
    """The other process said what it never should."""


class Frames(asyncio.Protocol):
    """One end of a connection. ``received`` is given the kind and body of each message, ``lost`` comes last.

    What is sent in one turn of the event loop goes out in one write: so do the answers of a whole batch. A
    message that ``received`` raises at ends the connection.
    """

    def __init__(self, *, received: Callable[[int, bytes], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost
        self._arrived = bytearray()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def send(self, kind: int, *parts: bytes) -> None:
        """Say something; where nobody listens any more, nothing happens."""
        if self._transport is None:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += (_HEAD.pack(sum(map(len, parts)), kind), *parts)

    def close(self) -> None:
        """End the connection after what was sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._arrived += data
        try:
            self._take_whole_frames()
        except Exception:  # whatever a malformed message makes of itself
            _LOG.exception("a connection between processes is given up")
            if self._transport is not None:
                self._transport.abort()

    def _take_whole_frames(self) -> None:
        start, size = 0, len(self._arrived)
        while size - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._arrived, start)
            body = start + _HEAD.size
            if size < body + length:
                break
            start = body + length
            self._received(kind, bytes(memoryview(self._arrived)[body:start]))
        del self._arrived[:start]

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

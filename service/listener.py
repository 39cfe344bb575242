"""A port that several processes listen on, each for its part."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_TURN_SECONDS = 0.001  # longer than another process takes to wake up; a request costs as much
_PAUSE_SECONDS = 1.0  # in which files may be closed, where too many are open


class SharedListener:
    """Takes one connection and leaves the next to the other processes for a moment.

    asyncio and uvloop take all that wait at once: of 64 clients who come together, all may end up at one of
    two processes, and stay there for as long as they keep their connections. Stands in for an
    ``asyncio.Server``. ``listening`` is bound, and is closed with this.
    """

    def __init__(
        self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol], *, backlog: int
    ) -> None:
        self.sockets = (listening,)
        self._listening = listening
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._welcomes: set[asyncio.Task[object]] = set()
        listening.setblocking(False)
        listening.listen(backlog)
        self._listen()

    def close(self) -> None:
        """Take no more connections; those there are stay."""
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    async def wait_closed(self) -> None:
        """Wait for those that were taken last."""
        await asyncio.gather(*self._welcomes, return_exceptions=True)

    def _listen(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._take_one)

    def _take_one(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another process was quicker, or the client left
            return
        except OSError:  # too many open files
            self._pause(_PAUSE_SECONDS)
            return
        self._pause(_TURN_SECONDS)
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        work = self._loop.connect_accepted_socket(self._make_protocol, connected)
        self._welcomes.add(welcome := self._loop.create_task(work))
        welcome.add_done_callback(self._welcomes.discard)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._loop.call_later(seconds, self._listen)

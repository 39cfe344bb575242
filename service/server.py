"""Running uvicorn: what happens between the first signal and the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.context import Services
from service.listener import SharedListener
from service.protocol import GuardedHttp
from service.settings import Settings
from service.signals import StopSignals

_LOG = logging.getLogger("clipserve")
_LAST_WORDS = 0.2  # seconds in which a request arrives on a connection that was just opened


class Server(uvicorn.Server):
    """uvicorn, but told to stop it first says so at ``/health/ready``, and waits until that was seen.

    uvicorn on its own closes its listeners and idle connections at once on SIGTERM, and requests that a
    client or load balancer is just sending are cut off. Here every answer of a draining server closes
    its connection, so that clients leave between two requests.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._stops = StopSignals()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT here, and end with a status of our own instead of the signal's."""
        self._loop = asyncio.get_running_loop()
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        second = self._stops.is_second()
        if self._services.draining and not self._services.failure:  # which stopped it the first time
            if not second:
                return
            _LOG.warning("stopping at once")
            self.force_exit = True
        self._services.draining = True
        self._loop.call_soon_threadsafe(self._drain, number, frame)

    def _drain(self, number: int, frame: FrameType | None) -> None:
        farewell = (b"connection", b"close")
        self.config.encoded_headers.append(farewell)  # uvicorn makes its headers from these once a second
        self.server_state.default_headers.append(farewell)
        known = self._services.ready and not self._services.failure  # nobody sends to what is not ready
        at_once = number == signal.SIGINT or self.force_exit or not known
        delay = 0.0 if at_once else self._services.settings.drain_seconds
        self._loop.call_later(delay, self.handle_exit, number, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, on the given sockets as one of several processes, and say where."""
        if sockets is None:
            await super().startup()
            return
        await super().startup([])
        backlog = self.config.backlog
        self.servers = [SharedListener(one, self._protocol, backlog=backlog) for one in sockets]  # type: ignore[misc]
        self._log_started_message(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more; close connections only when what is on its way there has been answered."""
        if not self.force_exit:
            for connected in self._stop_listening(sockets or []):
                await self._loop.connect_accepted_socket(self._protocol, connected)
            await asyncio.sleep(_LAST_WORDS)
        await super().shutdown(sockets)

    def _stop_listening(self, given: list[socket.socket]) -> list[socket.socket]:
        """Close the listeners; gives the connections that waited there, which the system would reset.

        Of several processes that share a listener, each takes what it finds, and the last one the rest.
        """
        waited: list[socket.socket] = []
        for server in self.servers:
            listeners = _copies(server.sockets)
            server.close()
            for one in given:
                one.close()
            for listener in listeners:
                with listener, contextlib.suppress(OSError):  # nobody waits, or too many files are open
                    listener.setblocking(False)
                    while True:
                        waited.append(listener.accept()[0])
        return waited

    def _protocol(self) -> asyncio.Protocol:
        """What uvicorn makes for a connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _copies(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """The same once more; none where too many files are open, for then nobody could be taken anyway."""
    try:
        return [socket.socket(fileno=os.dup(one.fileno())) for one in listeners]
    except OSError:
        return []


def run(app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None) -> int:
    """Serve until told to stop, on bound ``sockets`` or on the settings' port.

    Returns:
        The process's exit status: 0 after a stop that was asked for, 1 if the server could not start
        or its engine died.
    """
    services: Services = app.state.services
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=GuardedHttp,
        backlog=2048,
        # Longer than a load balancer keeps an idle connection: it must never send on one just closed here.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.request_timeout) + 1,
    )
    try:
        Server(config, services).run(sockets)
    except SystemExit:  # uvicorn's way out when it cannot listen on the port, with a status of its own
        return 1
    if services.failure:
        # A batch that hangs holds its thread for ever, and Python would wait for that thread.
        logging.shutdown()
        os._exit(1)
    return 0

"""Running uvicorn: what happens between the first signal and the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.context import Services
from service.settings import Settings

_LOG = logging.getLogger("clipserve")


class Server(uvicorn.Server):
    """uvicorn, but told to stop it first says so at ``/health/ready``, and waits until that was seen.

    uvicorn on its own closes its listeners at once on SIGTERM, and requests that a load balancer is
    just sending are refused.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

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
        if self._services.draining:
            _LOG.warning("stopping at once")
            self.force_exit = True
        self._services.draining = True
        at_once = number == signal.SIGINT or self.force_exit or self._services.failure
        delay = 0.0 if at_once else self._services.settings.drain_seconds
        self._loop.call_soon_threadsafe(self._loop.call_later, delay, self.handle_exit, number, frame)


def run(app: FastAPI, settings: Settings) -> int:
    """Serve until told to stop.

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
        backlog=2048,
        # Longer than a load balancer keeps an idle connection: it must never send on one just closed here.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.request_timeout) + 1,
    )
    try:
        Server(config, services).run()
    except SystemExit:  # uvicorn's way out when it cannot listen on the port, with a status of its own
        return 1
    if services.failure:
        # A batch that hangs holds its thread for ever, and Python would wait for that thread.
        logging.shutdown()
        os._exit(1)
    return 0

"""``/metrics`` on a port of its own, so that what clients reach does not have it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.metrics import Metrics
from service.protocol import GuardedHttp
from service.security_headers import SecurityHeaders

_MAX_CONNECTIONS = 16


class MetricsApp:
    """Answers ``GET /metrics`` and nothing else."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if (scope["method"], scope["path"]) == ("GET", "/metrics"):
            response = Response(self._metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
        else:
            response = Response(status_code=404)
        await response(scope, receive, send)


def bound(host: str, port: int) -> socket.socket:
    """A socket for whoever is to listen there; port 0 is any that is free.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


@contextlib.asynccontextmanager
async def metrics_listener(metrics: Metrics, listening: socket.socket) -> AsyncIterator[None]:
    """Serve metrics while the block runs, then close ``listening``."""
    with listening:
        config = uvicorn.Config(
            SecurityHeaders(MetricsApp(metrics)),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            http=GuardedHttp,
            backlog=_MAX_CONNECTIONS,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = _QuietServer(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


class _QuietServer(uvicorn.Server):
    """uvicorn beside another one, which has the signals and says what is running."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _log_started_message(self, listeners: object) -> None:
        pass

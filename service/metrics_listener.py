"""``/metrics`` on a port of its own, so that what clients reach does not have it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.security_headers import SecurityHeaders

_MAX_CONNECTIONS = 16


class MetricsApp:
    """Answers ``GET /metrics`` and nothing else."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if (scope["method"], scope["path"]) == ("GET", "/metrics"):
            response = Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
        else:
            response = Response(status_code=404)
        await response(scope, receive, send)


@contextlib.asynccontextmanager
async def metrics_listener(registry: CollectorRegistry, *, host: str, port: int) -> AsyncIterator[int]:
    """Serve metrics while the block runs; gives the port, which is another one for port 0.

    Raises:
        OSError: the port cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=_MAX_CONNECTIONS) as listening:
        config = uvicorn.Config(
            SecurityHeaders(MetricsApp(registry)),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = _QuietServer(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
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

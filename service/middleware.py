"""What every request goes through: an id, timings, metrics, a log line, errors as problem+json."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import caller_of
from service.errors import (
    ErrorBody,
    UrlTimeoutError,
    http_problem,
    log_fault,
    problem,
    problem_body,
    status_of,
)
from service.metrics import Metrics
from service.timings import Timings

_ACCESS = logging.getLogger("clipserve.access")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_CLOSED = 499  # nginx's code for a client that went away; only ever seen in logs and metrics


class ClientGoneError(Exception):
    """The client closed its connection before the answer was ready."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Routes whose clients know errors in one form only."""

    routes: Sequence[BaseRoute]
    error_body: ErrorBody

    def is_spoken_at(self, scope: Scope) -> bool:
        """Whether a request is for one of the routes, even if it was refused before it got there."""
        return any(route.matches(scope)[0] is Match.FULL for route in self.routes)


class Observe:
    """Outermost of the application: nothing leaves without an id, a log line and a count.

    All errors come out here, in the form that ``dialects`` has for their route, or as problem+json. ``begin``
    gives the timings of a request that has just come: plain ones, or those of a trace.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        access_log: bool,
        begin: Callable[[Scope], Timings],
        dialects: Sequence[Dialect] = (),
    ) -> None:
        self._app = app
        self._begin = begin
        self._metrics = metrics
        self._access_log = access_log
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; see ``asgi.readthedocs.io`` for the shape."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        timings = scope["timings"] = self._begin(scope)
        timings.ids = {"request_id": request_id, **timings.ids}
        status = _CLIENT_CLOSED

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
                if timings.seconds:
                    message["headers"].append((b"server-timing", timings.header().encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except (ClientDisconnect, ClientGoneError):
            self._metrics.rejected.labels("client_gone").inc()
        except Exception as error:
            if status != _CLIENT_CLOSED:
                raise  # the answer has begun; only the server can end the connection now
            await self._answer(error, scope)(scope, receive, send_with_headers)
        finally:
            self._note(scope, status, time.perf_counter() - began, request_id, timings)

    def _answer(self, error: Exception, scope: Scope) -> ASGIApp:
        spoken = (dialect.error_body for dialect in self._dialects if dialect.is_spoken_at(scope))
        body = next(spoken, problem_body)
        if isinstance(error, HTTPException):
            return http_problem(error, body)
        log_fault([error], scope["timings"].ids)
        status = status_of(error)
        if status.status in {429, 503, 504} and not isinstance(error, UrlTimeoutError):  # counted already
            self._metrics.rejected.labels(status.code).inc()
        return problem(error, body)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str, timings: Timings) -> None:
        # The route's pattern, never the path: a label must not take its value from a request.
        matched: str | None = getattr(scope.get("route"), "path", None)
        route = matched or "unmatched"
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        for stage, spent in timings.seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(spent)
        if self._access_log:
            _ACCESS.info(
                "request",
                extra={
                    **timings.ids,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    **({"items": scope["items"]} if "items" in scope else {}),
                    **({} if (caller := caller_of(scope)) is None else {"key": caller.key.name}),
                    "ms": round(1000 * seconds, 2),
                    **{f"{stage}_ms": round(1000 * spent, 2) for stage, spent in timings.seconds.items()},
                },
            )
        timings.end(method=scope["method"], route=matched, status=status, request_id=request_id)


def _request_id(scope: Scope) -> str:
    """The caller's ``X-Request-ID`` where it is short and plain, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value, "latin-1")
    return f"{random.getrandbits(128):032x}"

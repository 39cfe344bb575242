"""What one request has at hand: the parts of the service, its timings, its places and its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from prompts.templates import TemplateSets
from service.access import charge_for
from service.admission import Admission, Places
from service.classifiers import NamedClassifiers
from service.engine import Engine
from service.errors import InvalidRequestError, UnavailableError
from service.inputs import InputReader
from service.middleware import ClientGoneError
from service.served import ServedModel
from service.settings import Settings
from service.timings import Timings
from service.worker import Worker

_TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_LONGEST_TIMEOUT = 10**9 - 1  # milliseconds; the server's own limit holds long before


@dataclass(kw_only=True)
class Services:
    """The parts of one server: put together in ``app.create_app``, found by routes in ``app.state``."""

    settings: Settings
    engine: Engine
    admission: Admission
    template_sets: TemplateSets
    classifiers: NamedClassifiers
    inputs: InputReader
    worker: Worker | None = None
    ready: bool = False
    draining: bool = False
    failure: str | None = None  # why the server could not start

    def served_model(self, name: str | None) -> ServedModel:
        """The model of that name, or the server's default one.

        Raises:
            UnavailableError: the server is not ready.
            UnknownModelError: no model of that name is loaded.
        """
        if not self.ready:
            raise UnavailableError("the server is starting: its models are not all loaded yet")
        return self.engine.model(name or self.settings.models[0])


def services_of(request: Request) -> Services:
    """The server's parts."""
    services: Services = request.app.state.services
    return services


@dataclass(frozen=True, kw_only=True)
class Work:
    """One admitted request. ``deadline`` is on the clock of ``time.monotonic``."""

    timings: Timings
    places: Places
    deadline: float


@asynccontextmanager
async def admitted(request: Request) -> AsyncIterator[Work]:
    """Hold a place for the request, end it at its deadline.

    Raises:
        UnavailableError: the server is starting.
        InvalidRequestError: the deadline that the client gave is no number of milliseconds.
        QueueFullError: no place is left.
        TimeoutError: the deadline passed.
    """
    services = services_of(request)
    if not services.ready:
        raise UnavailableError("the server is starting: its models are not all loaded yet")
    seconds = _seconds_allowed(request, services.settings.request_timeout)
    with services.admission.reserve(charge_for(request)) as places:
        try:
            async with asyncio.timeout(seconds):
                yield Work(
                    timings=request.scope["timings"], places=places, deadline=time.monotonic() + seconds
                )
        except TimeoutError as error:
            raise TimeoutError(f"the request took longer than {seconds:g} s") from error
        finally:
            request.scope["items"] = places.held  # for the log


def _seconds_allowed(request: Request, limit: float) -> float:
    """What the client allows in ``X-Request-Timeout-Ms``, at most what the server does."""
    given = request.headers.get(_TIMEOUT_HEADER)
    if given is None:
        return limit
    # Digits are counted before they are read: thousands of them are no number to Python.
    if not (given.isascii() and given.isdigit() and len(given) < 20 and 1 <= int(given) <= _LONGEST_TIMEOUT):
        raise InvalidRequestError(
            f"{_TIMEOUT_HEADER}: must be a whole number of milliseconds from 1 to {_LONGEST_TIMEOUT}"
        )
    return min(limit, int(given) / 1000)


@asynccontextmanager
async def ended_with_client(request: Request) -> AsyncIterator[None]:
    """Cancel the work inside if the client goes away. The body must have been read.

    Raises:
        ClientGoneError: it went away.
    """
    work = asyncio.current_task()
    assert work is not None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        work.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            work.uncancel()
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()

"""``create_app(settings)``: wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import Scope

from prompts.templates import TemplateSets
from service.access import Access
from service.admission import Admission
from service.classifiers import NamedClassifiers
from service.context import Services
from service.declared import build_declared, read_declared
from service.engine import Engine, EngineOptions
from service.host import batch_options
from service.inputs import InputReader
from service.metrics import Metrics
from service.metrics_listener import bound, metrics_listener
from service.middleware import Dialect, Observe
from service.registry import registry_of
from service.routes import (
    classifiers,
    classify,
    embed,
    health,
    hugging_face,
    models,
    openai,
    playground,
    scrape,
    weaviate,
)
from service.schemas import openapi_errors
from service.security_headers import SecurityHeaders
from service.settings import Settings, otel_variables
from service.state import open_embeddings, open_store
from service.timings import Timings
from service.tracing import open_tracing
from service.worker import Worker

if TYPE_CHECKING:
    from models.registry import ModelRegistry
    from service.fetch import PictureFetcher
    from service.host import ModelHost

_LOG = logging.getLogger("clipserve")
_SUPERVISION_SECONDS = 1.0
_DIALECTS = (openai, hugging_face, weaviate)  # what the clients of other services speak
_DESCRIPTION = "Zero-shot image classification: pictures and words in, probabilities and embeddings out."


def create_app(settings: Settings | None = None, worker: Worker | None = None) -> FastAPI:
    """A server's ASGI application. Models are loaded while it starts; until then it is not ready.

    ``worker``: which of several processes this is.
    """
    settings = settings or Settings()
    services = _services(settings, worker)
    tracing = open_tracing(otel_variables())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_start(services)), asyncio.create_task(_supervise(services))]
        if worker is not None and worker.replaces:  # the others answer meanwhile
            while not (tasks[0].done() or services.draining):
                await asyncio.wait(tasks[:1], timeout=_SUPERVISION_SECONDS)
        try:
            async with _metrics_port(services, worker):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await services.classifiers.close()
            await services.engine.close()
            if services.inputs.fetcher is not None:
                services.inputs.fetcher.close()
            if tracing is not None:
                await tracing.close()

    app = FastAPI(
        title="clipserve",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own would send queries, and with them labels; ours are in service.tracing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        redirect_slashes=False,  # a redirect would lead wherever the request's Host says
        exception_handlers={HTTPException: _leave_to_observe},
        responses=openapi_errors(),
    )
    app.state.services = services
    for routes in (classify, embed, classifiers, models, health, *_DIALECTS):
        app.include_router(routes.router)
    if settings.metrics_port is None:
        app.include_router(scrape.router)
    if settings.playground:
        app.include_router(playground.router)
    _add_middleware(app, services, begin=tracing.begin if tracing else _untraced)
    return app


def _add_middleware(app: FastAPI, services: Services, *, begin: Callable[[Scope], Timings]) -> None:
    """From the innermost outwards: what is added later sees a request earlier."""
    settings, metrics = services.settings, services.engine.metrics
    app.add_middleware(Access, settings=settings)
    app.add_middleware(
        Observe,
        metrics=metrics,
        access_log=settings.access_log,
        begin=begin,
        dialects=[Dialect(routes=one.router.routes, error_body=one.error_body) for one in _DIALECTS],
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=(
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "X-Request-ID",
                "X-Request-Timeout-Ms",
            ),
            expose_headers=("Retry-After", "Server-Timing", "X-Request-ID"),
        )
    app.add_middleware(SecurityHeaders)


@asynccontextmanager
async def _metrics_port(services: Services, worker: Worker | None) -> AsyncIterator[None]:
    settings, listening = services.settings, worker and worker.metrics_socket
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            try:
                listening = listening or bound(settings.host, settings.metrics_port)
                await stack.enter_async_context(metrics_listener(services.engine.metrics, listening))
            except OSError as error:
                _cannot_start(services, OSError(f"METRICS_PORT {settings.metrics_port}: {error.strerror}"))
        yield


def _services(settings: Settings, worker: Worker | None) -> Services:
    registry = registry_of(settings)
    metrics = Metrics(shared=worker is not None)
    engine = Engine(
        registry,
        metrics,
        EngineOptions(
            batches=batch_options(settings),
            decode_threads=settings.decode_threads,
            background_prompts=settings.background_prompts,
            class_cache_bytes=settings.class_cache_bytes,
            matrix_cache_bytes=settings.matrix_cache_bytes,
        ),
        host=_front_host(settings, registry, worker),
        shared_embeddings=open_embeddings(settings),
    )
    admission = Admission(settings.max_queue, expected_wait=engine.expected_wait)
    metrics.watch(metrics.admitted_items, value=lambda: admission.taken)
    store = open_store(settings)
    metrics.watch(metrics.store_reachable, value=lambda: store.problem is None)
    template_sets = TemplateSets(*settings.template_set_folders)
    template_sets.get(settings.default_template_set)
    return Services(
        settings=settings,
        engine=engine,
        admission=admission,
        template_sets=template_sets,
        classifiers=NamedClassifiers(engine, store),
        inputs=InputReader(settings, _fetcher(settings)),
        worker=worker,
    )


def _front_host(settings: Settings, registry: ModelRegistry, worker: Worker | None) -> ModelHost | None:
    if worker is None or worker.bell is None:
        return None
    from service.shared.front import FrontHost

    return FrontHost(registry, bell=worker.bell, names=settings.models, capacity=settings.max_queue)


def _fetcher(settings: Settings) -> PictureFetcher | None:
    if not settings.urls:
        return None
    from service.fetch import FetchLimits, PictureFetcher

    return PictureFetcher(
        limits=FetchLimits(
            max_bytes=settings.max_image_bytes,
            connect_seconds=settings.url_connect_timeout,
            read_seconds=settings.url_read_timeout,
            total_seconds=settings.url_timeout,
        ),
        hosts=settings.urls,
        ports=settings.url_ports,
        concurrency=settings.url_concurrency,
    )


async def _start(services: Services) -> None:
    """Load every preloaded model; a server that cannot is of no use and ends itself."""
    folder = services.settings.declared_classifiers_dir
    try:
        declared = read_declared(folder) if folder else []
        for name in services.settings.models:
            await services.engine.load(name)
        await services.classifiers.resume()
        await build_declared(services, declared)
        # Code, models and classifiers stay: walking through them for garbage would stop every request for
        # 40 ms, and for longer where there are classifiers of many labels.
        gc.freeze()
        services.ready = True
        if services.worker is not None:
            services.engine.metrics.refresh()
            services.worker.tell_ready()
        _LOG.info("ready")
    except asyncio.CancelledError:
        raise
    except Exception as error:
        _cannot_start(services, error)


async def _supervise(services: Services) -> None:
    """End the process once its engine is dead, so that whatever runs it starts another."""
    while not (failures := services.engine.failures()):
        await asyncio.sleep(_SUPERVISION_SECONDS)  # a stall is noticed by the clock alone
        if services.worker is not None:
            services.engine.metrics.refresh()
    _LOG.critical("the engine is dead: %s", "; ".join(failures))
    await asyncio.sleep(services.settings.drain_seconds)
    _give_up(services, failures[0])


def _cannot_start(services: Services, error: Exception) -> None:
    _LOG.critical("cannot start: %s", error, exc_info=_LOG.isEnabledFor(logging.DEBUG))
    _give_up(services, str(error))


def _give_up(services: Services, reason: str) -> None:
    services.failure = reason
    os.kill(os.getpid(), signal.SIGTERM)


def _untraced(_: Scope) -> Timings:
    return Timings()


async def _leave_to_observe(_: Request, error: Exception) -> Response:
    raise error

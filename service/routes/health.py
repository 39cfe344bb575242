"""``/health/live`` and ``/health/ready``: for probes and load balancers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.context import Services, services_of
from service.responses import JsonResponse
from service.served import ServedModel

router = APIRouter(tags=["health"])
UNWELL: dict[int | str, dict[str, Any]] = {503: {"description": "The same body, with the reasons"}}


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", responses=UNWELL)
async def live(request: Request) -> Response:
    """200 while the engine works; 503 once a worker has died or hangs: restart the process."""
    failures = services_of(request).engine.failures()
    body = {"status": "dead", "reasons": failures} if failures else {"status": "live"}
    return JsonResponse(body, 503 if failures else 200)


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses=UNWELL)
async def ready(request: Request) -> Response:
    """200 while requests are welcome; 503 while the server starts, drains, or its engine is dead.

    `degraded` is a 200 too: everything known is served, and what needs the store of classifiers is not.
    """
    services = services_of(request)
    status = _status(services)
    body = {
        "status": status,
        "models": [_model(served) for served in services.engine.served()],
    }
    if status == "degraded" and (problem := services.classifiers.store.problem):
        body["reasons"] = [problem]
    return JsonResponse(body, 200 if status in {"ready", "degraded"} else 503)


def _model(served: ServedModel) -> dict[str, Any]:
    running = served.running()
    return {
        "name": served.name,
        "runtime": running["runtime"],
        "provider": running["provider"],
        "precision": running["runtime_precision"],
        "warmed": True,
        "queue": {name: queue.waiting("interactive") for name, queue in served.queues.items()},
    }


def _status(services: Services) -> str:
    if services.draining:
        return "draining"
    if services.engine.failures():
        return "dead"
    others_start = services.worker is not None and not services.worker.all_ready()
    if not services.ready or not services.engine.reachable or others_start:
        return "starting"
    return "degraded" if services.classifiers.store.problem else "ready"

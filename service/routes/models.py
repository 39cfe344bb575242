"""``GET /models`` and ``GET /template-sets``: what this server knows."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from models.errors import ManifestError
from models.registry import describe
from service.access import require_admin
from service.context import Services, services_of
from service.errors import InvalidRequestError, message_of
from service.responses import JsonResponse

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(request: Request) -> Response:
    """Every model in the registry, loaded or not; the default one by name."""
    services = services_of(request)
    names = await asyncio.to_thread(services.engine.registry.names)
    return JsonResponse(
        {
            "default": services.settings.models[0],
            "models": [await asyncio.to_thread(_describe_any, services, name) for name in names],
        }
    )


@router.get("/models/{name}")
async def get_model(request: Request, name: str) -> Response:
    """One model: what its manifest says, its parity report, and what runs it."""
    return JsonResponse(await asyncio.to_thread(_describe, services_of(request), name))


@router.post("/models/{name}/load")
async def load_model(request: Request, name: str) -> Response:
    """Load a model, or the changed files of a loaded one, without stopping what is served (admin key)."""
    services = services_of(request)
    require_admin(request, services.settings)
    served = await services.engine.load(name)
    await services.classifiers.rebuild()
    return JsonResponse(served.describe())


@router.post("/models/{name}/unload", status_code=204)
async def unload_model(request: Request, name: str) -> Response:
    """Take a model out of service; what it is working on is answered first (admin key)."""
    services = services_of(request)
    require_admin(request, services.settings)
    if name == services.settings.models[0]:
        raise InvalidRequestError(f"name: {name!r} is the default model and stays loaded")
    await services.engine.unload(name)
    return Response(status_code=204)


@router.get("/template-sets")
async def list_template_sets(request: Request) -> Response:
    """Every template set with its templates; the default one by name."""
    services = services_of(request)
    return JsonResponse(
        {
            "default": services.settings.default_template_set,
            "template_sets": [
                {
                    "name": one.name,
                    "description": one.description,
                    "source": one.source,
                    "templates": one.templates,
                }
                for one in services.template_sets
            ],
        }
    )


def _describe_any(services: Services, name: str) -> dict[str, Any]:
    """One broken model must not hide the others."""
    try:
        return _describe(services, name)
    except ManifestError as error:
        return {"name": name, "loaded": False, "error": message_of(error)}


def _describe(services: Services, name: str) -> dict[str, Any]:
    for served in services.engine.served():
        if served.name == name:
            return served.describe()
    return describe(services.engine.registry.manifest(name))

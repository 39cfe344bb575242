"""``GET /models`` and ``GET /template-sets``: what this server knows."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from models.errors import ManifestError
from models.registry import describe
from service.context import Services, services_of
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
        return {"name": name, "loaded": False, "error": str(error)}


def _describe(services: Services, name: str) -> dict[str, Any]:
    for served in services.engine.served():
        if served.name == name:
            return served.model.describe()
    return describe(services.engine.registry.manifest(name))

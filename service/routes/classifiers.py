"""``/classifiers``: named classifiers, built once and kept."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.classes import check_named_classes, choose_templates
from service.context import admitted, services_of
from service.responses import JsonResponse
from service.schemas import ClassifierAnswer, ClassifierBody, openapi_body

router = APIRouter(prefix="/classifiers", tags=["classifiers"])


@router.put(
    "/{name}",
    response_model=ClassifierAnswer,
    openapi_extra=openapi_body(ClassifierBody),
    responses={202: {"model": ClassifierAnswer, "description": "A large one, being built"}},
)
async def put_classifier(request: Request, name: str) -> Response:
    """Make or replace a classifier. A large one answers 202 and its GET shows how far it has come."""
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            wanted = await services.inputs.classifier(request)
        settings = services.settings
        served = services.served_model(wanted.model)
        template_set = choose_templates(wanted.classes, services.template_sets, settings)
        labels = check_named_classes(wanted.classes, template_set, settings)
        made = await services.classifiers.put(name, labels, template_set, model=served.name)
    return JsonResponse(made, 202 if made["state"] == "building" else 200)


@router.get("", response_model=dict[str, list[ClassifierAnswer]])
async def list_classifiers(request: Request) -> Response:
    """Every named classifier."""
    return JsonResponse({"classifiers": services_of(request).classifiers.list()})


@router.get("/{name}", response_model=ClassifierAnswer)
async def get_classifier(request: Request, name: str) -> Response:
    """What a classifier is made of, and how far its building has come."""
    classifiers = services_of(request).classifiers
    await classifiers.look_for(name)
    described: dict[str, Any] = classifiers.describe(name)
    return JsonResponse(described)


@router.delete("/{name}", status_code=204)
async def delete_classifier(request: Request, name: str) -> Response:
    """Forget a classifier."""
    await services_of(request).classifiers.delete(name)
    return Response(status_code=204)

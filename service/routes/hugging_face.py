"""``POST /`` and ``POST /models/{name}``: zero-shot classification as ``huggingface_hub`` asks for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from prompts.labels import Label
from prompts.templates import PLACEHOLDER
from service.body import body_kind
from service.context import admitted, ended_with_client, services_of
from service.errors import InvalidRequestError, message_body
from service.inputs import ClassifyRequest, ClassRequest, InputReader
from service.responses import JsonResponse
from service.routes.classify import classified
from service.schemas import MAX_LABELS, Body, ErrorMessage, listed, openapi_body, openapi_errors

router = APIRouter(
    tags=["Hugging Face client"], responses=openapi_errors(ErrorMessage, media_type="application/json")
)
error_body = message_body


class ZeroShotParameters(Body):
    """Which labels, and the sentence they are put into."""

    candidate_labels: Annotated[list[str], listed(MAX_LABELS)]
    hypothesis_template: str | None = Field(
        None, description="A template with {} for the label; default: the server's template set."
    )


class ZeroShotBody(Body):
    """``POST /models/{name}``."""

    inputs: str = Field(description="The picture: base64, a data URI, or an address.")
    parameters: ZeroShotParameters


class ZeroShotScore(BaseModel):
    """A label and its probability (or sigmoid score)."""

    label: str
    score: float


@router.post("/", response_model=list[ZeroShotScore], openapi_extra=openapi_body(ZeroShotBody))
async def classify_by_default(request: Request) -> Response:
    """Score a picture against labels, best first, with the server's first model."""
    return await _classify(request, None)


@router.post("/models/{name}", response_model=list[ZeroShotScore], openapi_extra=openapi_body(ZeroShotBody))
async def classify_by_name(request: Request, name: str) -> Response:
    """Score a picture against labels, best first."""
    return await _classify(request, name)


async def _classify(request: Request, model: str | None) -> Response:
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            body_kind(request, accepted=("json",))
            body = await services.inputs.json(request, ZeroShotBody)
        async with ended_with_client(request):
            answer = await classified(services, _wanted(body, model, services.inputs), work)
    predictions = answer["results"][0]["predictions"]
    return JsonResponse([{"label": one["label"], "score": one["score"]} for one in predictions])


def _wanted(body: ZeroShotBody, model: str | None, reader: InputReader) -> ClassifyRequest:
    labels = tuple(Label(one) for one in body.parameters.candidate_labels)
    return ClassifyRequest(
        pictures=(reader.picture(body.inputs, "inputs"),),
        single=True,
        classes=ClassRequest(labels=labels, templates=_templates(body.parameters.hypothesis_template)),
        activation=None,
        top_k=None,
        model=model,
    )


def _templates(hypothesis: str | None) -> tuple[str, ...] | None:
    if hypothesis is None:
        return None
    if "{}" not in hypothesis:
        raise InvalidRequestError("parameters.hypothesis_template: must contain {}, where the label goes")
    return (hypothesis.replace("{}", PLACEHOLDER),)

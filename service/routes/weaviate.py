"""What Weaviate's module ``multi2vec-clip`` asks of its inference container.

Its client is ``modules/multi2vec-clip/clients`` in weaviate/weaviate: it sends no Content-Type in older
versions, ``null`` for a list without entries, and no key.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.context import admitted, ended_with_client, services_of
from service.errors import message_body
from service.responses import JsonResponse
from service.routes import health
from service.routes.embed import all_embedded, embed_inputs, vector_of
from service.schemas import MAX_ITEMS, Body, ErrorMessage, listed, openapi_body, openapi_errors

router = APIRouter(tags=["Weaviate"], responses=openapi_errors(ErrorMessage, media_type="application/json"))
error_body = message_body


class VectorizeBody(Body):
    """``POST /vectorize``."""

    texts: Annotated[list[str], listed(MAX_ITEMS)] | None = None
    images: Annotated[list[str], listed(MAX_ITEMS)] | None = Field(
        None, description="base64, a data URI, or an address each."
    )


class VectorizeAnswer(BaseModel):
    """Answer of ``POST /vectorize``: a unit vector a text and a picture, in their order."""

    textVectors: list[list[float]]  # noqa: N815 (Weaviate's own name)
    imageVectors: list[list[float]]  # noqa: N815


@router.post("/vectorize", response_model=VectorizeAnswer, openapi_extra=openapi_body(VectorizeBody))
async def vectorize(request: Request) -> Response:
    """Embed texts and pictures with the server's first model; one bad input fails all."""
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            body = await services.inputs.json(request, VectorizeBody)
        texts, pictures = body.texts or [], body.images or []
        services.inputs.check_count(len(texts) + len(pictures), "texts, images")
        work.places.grow_to(len(texts) + len(pictures))
        fields = [f"texts[{place}]" for place in range(len(texts))]
        fields += [f"images[{place}]" for place in range(len(pictures))]
        inputs = [
            *map(services.inputs.text, texts, fields),
            *map(services.inputs.picture, pictures, fields[len(texts) :]),
        ]
        async with ended_with_client(request):
            with services.served_model(None).use() as served:
                outcomes = await embed_inputs(services, served, inputs, work)
    vectors = [vector_of(one) for one in all_embedded(outcomes, fields)]
    return JsonResponse({"textVectors": vectors[: len(texts)], "imageVectors": vectors[len(texts) :]})


@router.get("/meta")
async def meta(request: Request) -> Response:
    """The model that ``/vectorize`` uses."""
    return JsonResponse(services_of(request).served_model(None).describe())


@router.get("/.well-known/live", status_code=204, responses=health.UNWELL)
async def live(request: Request) -> Response:
    """204 where ``/health/live`` answers 200, and the same as there where it does not."""
    return _without_body(await health.live(request))


@router.get("/.well-known/ready", status_code=204, responses=health.UNWELL)
async def ready(request: Request) -> Response:
    """204 where ``/health/ready`` answers 200, and the same as there where it does not."""
    return _without_body(await health.ready(request))


def _without_body(answer: Response) -> Response:
    return Response(status_code=204) if answer.status_code == 200 else answer

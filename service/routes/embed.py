"""``POST /embed``: pictures and texts in, unit vectors out."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from service.context import Services, Work, admitted, ended_with_client, services_of
from service.engine import TextFeatures
from service.errors import item_error
from service.inputs import EmbedRequest, Kind
from service.responses import JsonResponse, base64_floats, npy_response
from service.routes.classify import image_features
from service.schemas import EmbedAnswer, EmbedBody, EmbedOptions, openapi_body
from service.served import Features, ServedModel

router = APIRouter(tags=["embed"])
_NPY = "application/x-npy"
_FILES = {
    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
    "text": {"type": "array", "items": {"type": "string"}},
}
Outcome = TextFeatures | Features | Exception


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    openapi_extra=openapi_body(EmbedBody, options=EmbedOptions, files=_FILES),
    responses={200: {"content": {_NPY: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def embed(request: Request) -> Response:
    """Embed pictures and texts, mixed as you like, in one space; always L2-normalised.

    Takes JSON, a form with repeated `image` and `text` fields, or a bare picture. With
    `Accept: application/x-npy` the answer is one (N, D) float32 array, and any bad input fails the
    request; otherwise a bad input among several is an `error` at its index.
    """
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            wanted = await services.inputs.embed(request)
        work.places.grow_to(len(wanted.inputs))
        async with ended_with_client(request):
            with services.served_model(wanted.model).use() as served:
                outcomes = await _embed(services, served, wanted, work)
    as_npy = _NPY in request.headers.get("accept", "")
    failed = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
    if failed is not None and (as_npy or len(outcomes) == 1):
        raise failed
    if as_npy:
        return npy_response(np.stack([_vector(one) for one in outcomes if not isinstance(one, Exception)]))
    return JsonResponse(
        {
            "model": served.name,
            "dim": served.model.manifest.embedding_dim,
            "embeddings": [
                _entry(index, kind, outcome, in_base64=wanted.encoding == "base64")
                for index, (kind, outcome) in enumerate(zip(wanted.kinds, outcomes, strict=True))
            ],
        }
    )


async def _embed(services: Services, served: ServedModel, wanted: EmbedRequest, work: Work) -> list[Outcome]:
    """One outcome an input, in their order; pictures and texts each go to their own encoder."""
    texts = [one for one in wanted.inputs if isinstance(one, str)]
    pictures = [one for one in wanted.inputs if not isinstance(one, str)]
    of_texts = iter(
        await services.engine.encode_texts(
            served, texts, timings=work.timings, truncate=wanted.truncate == "end", deadline=work.deadline
        )
    )
    of_pictures = iter(await image_features(services, served, pictures, work))
    return [next(of_texts) if isinstance(one, str) else next(of_pictures) for one in wanted.inputs]


def _vector(outcome: TextFeatures | Features) -> Features:
    return outcome.features if isinstance(outcome, TextFeatures) else outcome


def _entry(index: int, kind: Kind, outcome: Outcome, *, in_base64: bool) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"index": index, "kind": kind, "error": item_error(outcome)}
    vector = _vector(outcome)
    return {
        "index": index,
        "kind": kind,
        "truncated": isinstance(outcome, TextFeatures) and outcome.truncated,
        "embedding": base64_floats(vector) if in_base64 else vector,
    }

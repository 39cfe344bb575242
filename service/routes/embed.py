"""``POST /embed``: pictures and texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from models.tokenizer import TokenizedText
from service.context import Services, Work, admitted, ended_with_client, services_of
from service.engine import TextFeatures
from service.errors import item_error, log_fault, named
from service.inputs import Embeddable, Kind
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
                outcomes = await embed_inputs(
                    services, served, wanted.inputs, work, truncate=wanted.truncate == "end"
                )
    as_npy = _NPY in request.headers.get("accept", "")
    failed = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
    if failed is not None and (as_npy or len(outcomes) == 1):
        raise failed
    log_fault(outcomes, work.timings.ids)
    if as_npy:
        return npy_response(np.stack([vector_of(one) for one in outcomes if not isinstance(one, Exception)]))
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


async def embed_inputs(
    services: Services,
    served: ServedModel,
    inputs: Sequence[Embeddable],
    work: Work,
    *,
    truncate: bool = True,
) -> list[Outcome]:
    """One outcome an input, in their order; pictures and texts each go to their own encoder."""
    texts = [one for one in inputs if isinstance(one, str | TokenizedText)]
    pictures = [one for one in inputs if not isinstance(one, str | TokenizedText)]
    of_texts = iter(
        await services.engine.encode_texts(
            served, texts, timings=work.timings, truncate=truncate, deadline=work.deadline
        )
    )
    of_pictures = iter(await image_features(services, served, pictures, work))
    return [next(of_texts) if isinstance(one, str | TokenizedText) else next(of_pictures) for one in inputs]


def all_embedded(outcomes: Sequence[Outcome], fields: Sequence[str]) -> list[TextFeatures | Features]:
    """The outcomes, for answers that have no place for an error of one input.

    Raises:
        Exception: the first error among them, with the field of its input.
    """
    for outcome, field in zip(outcomes, fields, strict=True):
        if isinstance(outcome, Exception):
            raise named(outcome, field)
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def vector_of(outcome: TextFeatures | Features) -> Features:
    """The features (D,) of a text or a picture."""
    return outcome.features if isinstance(outcome, TextFeatures) else outcome


def _entry(index: int, kind: Kind, outcome: Outcome, *, in_base64: bool) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"index": index, "kind": kind, "error": item_error(outcome)}
    vector = vector_of(outcome)
    return {
        "index": index,
        "kind": kind,
        "truncated": isinstance(outcome, TextFeatures) and outcome.truncated,
        "embedding": base64_floats(vector) if in_base64 else vector,
    }

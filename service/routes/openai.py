"""``/v1/embeddings`` and ``/v1/models``: what the ``openai`` client asks for.

Pictures come as that client's users send them to other servers: strings with ``"modality": "image"``, or
items such as ``{"image": "data:…"}`` among the texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StrictInt,
    Tag,
    model_validator,
)
from starlette.exceptions import HTTPException

from models.errors import UnknownTokenError
from models.tokenizer import Tokenizer
from service.body import body_kind
from service.context import admitted, ended_with_client, services_of
from service.engine import TextFeatures
from service.errors import InvalidRequestError, Status, TooLargeError
from service.inputs import Embeddable, InputReader
from service.responses import JsonResponse, base64_floats
from service.routes.embed import all_embedded, embed_inputs, vector_of
from service.schemas import MAX_ITEMS, MAX_NUMBERS, Body, listed, openapi_body, openapi_errors
from service.served import Features, ServedModel

_ELSEWHERE = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class OpenAIErrorInfo(BaseModel):
    """What went wrong; ``code`` is the one that other routes have too."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: None
    code: str


class OpenAIError(BaseModel):
    """An error as OpenAI has it."""

    error: OpenAIErrorInfo


router = APIRouter(
    prefix="/v1",
    tags=["OpenAI client"],
    responses=openapi_errors(OpenAIError, media_type="application/json"),
)


class TypedInput(Body):
    """A text or a picture, among others of either kind."""

    text: str | None = None
    image: str | None = Field(None, description="base64, a data URI, or an address.")

    @model_validator(mode="after")
    def _exactly_one(self) -> TypedInput:
        if (self.text is None) == (self.image is None):
            raise ValueError("give exactly one of text, image")
        return self


def _form(given: object) -> str:
    if isinstance(given, str):
        return "str"
    return "list[int]" if isinstance(given, list) else "TypedInput"


Input = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[StrictInt], listed(MAX_NUMBERS), Tag("list[int]")]
    | Annotated[TypedInput, Tag("TypedInput")],
    Discriminator(_form),  # so that an error is about the form that was given, not about all there are
]


def _as_list(given: object) -> object:
    """One input is a list of one. A list of numbers is one input too: the tokens of a text."""
    is_list = isinstance(given, list) and not (given and isinstance(given[0], int))
    return given if is_list else [given]


class EmbeddingsBody(Body):
    """``POST /v1/embeddings``."""

    input: Annotated[
        Annotated[list[Input], listed(MAX_ITEMS, least=1)],
        BeforeValidator(_as_list, json_schema_input_type=Input | list[Input]),
        Field(description="One input or several: texts, their token ids, or typed items."),
    ]
    model: str | None = Field(None, description="Default: the first model of the server.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    dimensions: int | None = Field(None, description="Only the model's own number is accepted.")
    modality: Literal["text", "image"] = Field("text", description="What strings in `input` are.")
    truncate: Literal["end", "error"] = Field("end", description="What happens to a text that is too long.")
    user: str | None = Field(None, description="Accepted and not used.")


class OpenAIEmbedding(BaseModel):
    """One unit vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of all texts, start and end tokens included; pictures have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Answer of ``POST /v1/embeddings``."""

    object: Literal["list"]
    model: str
    data: list[OpenAIEmbedding]
    usage: Usage


@router.post("/embeddings", response_model=EmbeddingsAnswer, openapi_extra=openapi_body(EmbeddingsBody))
async def embeddings(request: Request) -> Response:
    """Embed texts and pictures as OpenAI's endpoint of this name embeds texts; one bad input fails all."""
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            body_kind(request, accepted=("json",))
            body = await services.inputs.json(request, EmbeddingsBody)
        services.inputs.check_count(len(body.input), "input")
        work.places.grow_to(len(body.input))
        async with ended_with_client(request):
            with services.served_model(body.model).use() as served:
                _check_dimensions(body, served)
                fields = [f"input[{place}]" for place in range(len(body.input))]
                # In a thread: half a million token ids take a while to check.
                inputs = await asyncio.to_thread(
                    _embeddables, body, fields, services.inputs, served.model.tokenizer
                )
                outcomes = await embed_inputs(services, served, inputs, work, truncate=body.truncate == "end")
    embedded = all_embedded(outcomes, fields)
    tokens = sum(one.tokens for one in embedded if isinstance(one, TextFeatures))
    return JsonResponse(
        {
            "object": "list",
            "model": served.name,
            "data": [
                _entry(index, vector_of(one), in_base64=body.encoding_format == "base64")
                for index, one in enumerate(embedded)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.get("/models")
async def list_models(request: Request) -> Response:
    """The models in service; ``created`` is when they came into it."""
    served = services_of(request).engine.served()
    return JsonResponse({"object": "list", "data": [_described(one) for one in served]})


@router.get("/models/{name}")
async def get_model(request: Request, name: str) -> Response:
    """One model in service."""
    return JsonResponse(_described(services_of(request).engine.model(name)))


@router.api_route("/{path:path}", methods=_ELSEWHERE, include_in_schema=False)
async def elsewhere(request: Request) -> Response:
    """Whatever else that client can ask for; here so that it reads the refusal in its own form."""
    raise HTTPException(404, f"{request.method} {request.url.path}: this server has no such endpoint")


def error_body(status: Status, detail: str) -> dict[str, Any]:
    """See ``OpenAIError``."""
    kind = "invalid_request_error" if status.status < 500 else "server_error"
    if status.status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": detail, "type": kind, "param": None, "code": status.code}}


def _check_dimensions(body: EmbeddingsBody, served: ServedModel) -> None:
    dim = served.model.manifest.embedding_dim
    if body.dimensions not in {None, dim}:
        raise InvalidRequestError(f"dimensions: must be {dim}, as {served.name!r} has them, or left out")


def _embeddables(
    body: EmbeddingsBody, fields: Sequence[str], reader: InputReader, tokenizer: Tokenizer
) -> list[Embeddable]:
    return [
        _embeddable(one, field, body.modality, reader, tokenizer)
        for one, field in zip(body.input, fields, strict=True)
    ]


def _embeddable(
    given: Input, field: str, modality: Literal["text", "image"], reader: InputReader, tokenizer: Tokenizer
) -> Embeddable:
    if isinstance(given, list):
        return _from_tokens(given, field, reader.settings.max_text_length, tokenizer)
    if isinstance(given, str):
        return reader.text(given, field) if modality == "text" else reader.picture(given, field)
    if given.image is not None:
        return reader.picture(given.image, f"{field}.image")
    return reader.text(given.text, f"{field}.text")


def _from_tokens(ids: list[int], field: str, limit: int, tokenizer: Tokenizer) -> Embeddable:
    if len(ids) > limit:
        return TooLargeError(f"{field}: has {len(ids)} tokens, at most {limit} are allowed")
    try:
        return tokenizer.from_ids(ids)
    except UnknownTokenError as error:
        return error


def _entry(index: int, vector: Features, *, in_base64: bool) -> dict[str, Any]:
    return {
        "object": "embedding",
        "index": index,
        "embedding": base64_floats(vector) if in_base64 else vector,
    }


def _described(served: ServedModel) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": int(served.since), "owned_by": "clipserve"}

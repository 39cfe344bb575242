"""Request bodies as pydantic models, and the shapes of responses for the OpenAPI document.

Responses are plain dictionaries on their way out: they are made here and need no second check.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from models.manifest import Activation

# No limit that a server may set is above these. They end the reading of a list that goes on for ever, and so
# does its first error: to collect all of them took two minutes and 11 GB for a body of 32 MB.
MAX_ITEMS = 10_000
MAX_LABELS = 1_000_000
MAX_NUMBERS = 8_192  # of an embedding, or tokens of a text
_MAX_TEMPLATES = 10_000
_MAX_UNKNOWN = 10


def listed(most: int, *, least: int = 0) -> Any:
    """What is to be said of a list of ``least`` to ``most`` entries."""
    return Field(min_length=least or None, max_length=most, fail_fast=True)


class UnknownFieldsError(Exception):
    """A body has more fields that there are not than anyone writes by mistake."""


def _refuse(name: str, info: ValidationInfo) -> str:
    if info.context is not None:
        info.context.append(name)
        if len(info.context) > _MAX_UNKNOWN:
            raise UnknownFieldsError(f"has more than {_MAX_UNKNOWN} fields that there are not")
    raise PydanticCustomError("extra_forbidden", "there is no such field")


class Body(BaseModel):
    """What a request brings, with no other fields than there are.

    ``extra="forbid"`` would collect an error for each of them, millions in a large body. Here, where the
    validation's ``context`` is a list to count them in, ``UnknownFieldsError`` ends it after a few.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})
    __pydantic_extra__: dict[Annotated[str, PlainValidator(_refuse)], Any] = Field(init=False)


class ImageSource(Body):
    """A picture: exactly one of its file in base64, its address, or an embedding made earlier."""

    base64: str | None = Field(None, description="The picture's file in base64; a data URI is accepted too.")
    url: str | None = Field(None, description="http or https address of the picture.")
    embedding: Annotated[list[float], listed(MAX_NUMBERS)] | str | None = Field(
        None,
        description="An image embedding: D numbers, or base64 of little-endian float32. Not encoded again.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageSource:
        given = [name for name in ("base64", "url", "embedding") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of base64, url, embedding")
        return self


class LabelBody(Body):
    """A label that brings its own prompts instead of the template set's."""

    label: str
    prompts: Annotated[list[str], listed(_MAX_TEMPLATES, least=1)]


Labels = Annotated[list[str | LabelBody], listed(MAX_LABELS)]
Templates = Annotated[list[str], listed(_MAX_TEMPLATES)]


class ClassifyOptions(Body):
    """Everything of ``POST /classify`` but the pictures; the fields of a form or a query."""

    labels: Labels | None = Field(None, description="What the picture may show.")
    classifier: str | None = Field(None, description="A named classifier, instead of labels.")
    template_set: str | None = Field(None, description="Name of a template set.")
    templates: Templates | None = Field(None, description="Templates of your own, each with {label}.")
    activation: Activation | None = Field(None, description="Default: the model's own.")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Best predictions only; default: all."
    )
    model: str | None = Field(None, description="Default: the first model of the server.")


class ClassifyBody(ClassifyOptions):
    """``POST /classify`` as JSON."""

    image: ImageSource | None = Field(None, description="One picture.")
    images: Annotated[list[ImageSource], listed(MAX_ITEMS, least=1)] | None = Field(
        None, description="Several pictures."
    )


class EmbedInput(Body):
    """One thing to embed: a text or a picture."""

    text: str | None = Field(None, description="May be empty: that is the embedding of a text without words.")
    image: ImageSource | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> EmbedInput:
        if (self.text is None) == (self.image is None):
            raise ValueError("give exactly one of text, image")
        return self


class EmbedOptions(Body):
    """Everything of ``POST /embed`` but the inputs."""

    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    truncate: Literal["end", "error"] = Field(
        "end", description="What happens to a text over the context length."
    )
    model: str | None = Field(None, description="Default: the first model of the server.")


class EmbedBody(EmbedOptions):
    """``POST /embed`` as JSON."""

    inputs: Annotated[list[EmbedInput], listed(MAX_ITEMS, least=1)]


class ClassifierBody(Body):
    """``PUT /classifiers/{name}``."""

    labels: Labels
    template_set: str | None = None
    templates: Templates | None = None
    model: str | None = None


class ErrorInfo(BaseModel):
    """Why one item failed."""

    code: str
    message: str


class Prediction(BaseModel):
    """A label, its probability (or sigmoid score) and the cosine between picture and class embedding."""

    label: str
    score: float
    similarity: float


class ClassifyResult(BaseModel):
    """The outcome for one picture: predictions, best first, or an error."""

    index: int
    predictions: list[Prediction] | None = None
    error: ErrorInfo | None = None


class ClassifyAnswer(BaseModel):
    """Answer of ``POST /classify``."""

    model: str
    template_set: str | None = None
    classifier: str | None = None
    activation: Activation
    results: list[ClassifyResult]


class Embedding(BaseModel):
    """The outcome for one input: a unit vector of ``dim`` float32 numbers, or an error."""

    index: int
    kind: Literal["text", "image"]
    truncated: bool | None = None
    embedding: list[float] | str | None = None
    error: ErrorInfo | None = None


class EmbedAnswer(BaseModel):
    """Answer of ``POST /embed``."""

    model: str
    dim: int
    embeddings: list[Embedding]


class ClassifierAnswer(BaseModel):
    """Answer of ``/classifiers/{name}``: what it is, and how far its building has come."""

    name: str
    model: str
    template_set: str
    labels: int
    state: Literal["building", "ready", "failed"]
    done: int
    total: int
    created: str
    error: str | None = None


class Problem(BaseModel):
    """An error as ``application/problem+json`` (RFC 9457); ``code`` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class ErrorMessage(BaseModel):
    """An error on routes whose clients look for its sentence in ``error``."""

    error: str
    code: str


def openapi_errors(
    body: type[BaseModel] = Problem, *, media_type: str = "application/problem+json"
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of every route that refuses a request."""
    content = {media_type: {"schema": _schema(body)}}
    return {
        "4XX": {"description": "What is wrong with the request", "content": content},
        "5XX": {"description": "What is wrong with the server", "content": content},
    }


def openapi_body(
    body: type[BaseModel], *, options: type[BaseModel] | None = None, files: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The ``requestBody`` of a route: JSON and, where ``options`` are given, forms and bare pictures."""
    content: dict[str, Any] = {"application/json": {"schema": _schema(body)}}
    if options is not None:
        fields = _schema(options)["properties"]
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": {**(files or {}), **fields}}
        }
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with nothing left to look up: FastAPI lists only the models it knows of."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolve(part) for key, part in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved

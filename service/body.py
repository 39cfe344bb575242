"""Request bodies off the wire, never more of them than the limits allow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import (
    InvalidRequestError,
    MalformedBodyError,
    RequestError,
    TooLargeError,
    UnsupportedBodyError,
)
from service.forms import Fields, FormReader
from service.schemas import UnknownFieldsError

Parsed = TypeVar("Parsed", bound=BaseModel)
BodyKind = Literal["json", "form", "raw"]

# What pydantic calls the members of the unions in bodies, between the names of fields.
_BRANCHES = {"str", "LabelBody", "list[float]", "list[int]", "TypedInput"}


def body_kind(request: Request, *, accepted: Iterable[BodyKind] = ("json", "form", "raw")) -> BodyKind:
    """What the Content-Type says the body is.

    Raises:
        UnsupportedBodyError: nothing that the route takes; the text lists what it does take.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind: BodyKind | None = None
    if media_type == "application/json" or media_type.endswith("+json"):
        kind = "json"
    elif media_type == "multipart/form-data":
        kind = "form"
    elif media_type.startswith("image/") or media_type == "application/octet-stream":
        kind = "raw"
    if kind is None or kind not in accepted:
        names = {"json": "application/json", "form": "multipart/form-data", "raw": "image/*"}
        takes = ", ".join(names[kind] for kind in accepted)
        raise UnsupportedBodyError(
            f"Content-Type: {media_type[:80] or 'none'!r} is not accepted; use {takes}"
        )
    return kind


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes; a body that declares more is refused unread.

    Raises:
        TooLargeError: it is over the limit.
    """
    return b"".join([chunk async for chunk in _chunks(request, limit)])


async def read_form(request: Request, limit: int, *, max_files: int, max_fields: int) -> Fields:
    """The parts of a multipart form in their order: files as bytes, other fields as text.

    Raises:
        TooLargeError: body, files or fields are over a limit.
        MalformedBodyError: it is no multipart form, or not the whole of one.
    """
    reader = FormReader(request.headers.get("content-type", ""), max_files=max_files, max_fields=max_fields)
    return await reader.read(_chunks(request, limit))


def parse_json(body: bytes, schema: type[Parsed]) -> Parsed:
    """Check a JSON body against its schema.

    Raises:
        MalformedBodyError: it is no JSON.
        InvalidRequestError: a field breaks a rule; the text names it.
        TooLargeError: a list has more entries than any limit allows.
    """
    with _refusals():
        return schema.model_validate_json(body, context=[])


def parse_fields(fields: Mapping[str, object], schema: type[Parsed]) -> Parsed:
    """Check the fields of a form or a query against the same schema as a JSON body.

    Raises:
        InvalidRequestError: a field breaks a rule; the text names it.
        TooLargeError: a list has more entries than any limit allows.
    """
    with _refusals():
        return schema.model_validate(fields, context=[])


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    too_large = TooLargeError(f"body: is larger than the limit of {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


@contextmanager
def _refusals() -> Iterator[None]:
    """What pydantic finds, as errors of the request."""
    try:
        yield
    except UnknownFieldsError as error:
        raise InvalidRequestError(f"body: {error}") from error
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> RequestError:
    """The first thing pydantic found, as ``field: what is wrong``.

    Of a value that may be several things, what fits best is meant: the one in which the fault lies deepest.
    """
    first, *others = error.errors(include_url=False, include_input=False)
    if first["type"] == "json_invalid":
        return MalformedBodyError(f"body: {first['msg']}")
    place = _field(first["loc"])
    deeper = [one for one in others if _field(one["loc"]).startswith((f"{place}.", f"{place}["))]
    meant = deeper[0] if deeper else first
    kind = TooLargeError if meant["type"] == "too_long" else InvalidRequestError
    return kind(f"{_field(meant['loc']) or 'body'}: {meant['msg'].removeprefix('Value error, ')}")


def _field(location: tuple[int | str, ...]) -> str:
    """``("labels", 0, "LabelBody", "prompts")`` as ``labels[0].prompts``.

    The name of a field that there is not may have megabytes: it is cut.
    """
    parts = (part for part in location if part not in _BRANCHES)
    joined = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in parts)
    return joined.removeprefix(".")

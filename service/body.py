"""Request bodies off the wire, never more of them than the limits allow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import InvalidRequestError, MalformedBodyError, TooLargeError, UnsupportedBodyError

Parsed = TypeVar("Parsed", bound=BaseModel)
BodyKind = Literal["json", "form", "raw"]
Fields = list[tuple[str, str | bytes]]


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
        MalformedBodyError: it is no multipart form.
    """
    parser = _InMemoryParser(
        request.headers,
        _chunks(request, limit),
        max_files=max_files,
        max_fields=max_fields,
        max_part_size=limit,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many" in error.message or "exceeded" in error.message:
            raise TooLargeError(f"body: {error.message}") from error
        raise MalformedBodyError(f"body: not a multipart form: {error.message}") from error
    except KeyError as error:  # a Content-Type without boundary
        raise MalformedBodyError("Content-Type: multipart/form-data needs a boundary") from error
    try:
        return [
            (name, part.file.read() if isinstance(part, UploadFile) else part)
            for name, part in form.multi_items()
        ]
    finally:
        await form.close()


def parse_json(body: bytes, schema: type[Parsed]) -> Parsed:
    """Check a JSON body against its schema.

    Raises:
        MalformedBodyError: it is no JSON.
        InvalidRequestError: a field breaks a rule; the text names it.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedBodyError(f"body: {first['msg']}") from error
        raise InvalidRequestError(_sentence(error)) from error


def parse_fields(fields: Mapping[str, object], schema: type[Parsed]) -> Parsed:
    """Check the fields of a form or a query against the same schema as a JSON body.

    Raises:
        InvalidRequestError: a field breaks a rule; the text names it.
    """
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequestError(_sentence(error)) from error


class _InMemoryParser(MultiPartParser):
    """Starlette's parser, which otherwise would write files above 1 MB to the disk."""

    spool_max_size = 2**40


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    too_large = TooLargeError(f"body: is larger than the limit of {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


def _sentence(error: ValidationError) -> str:
    """The first thing pydantic found, as ``field: what is wrong``; where a union failed, its first branch."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}"

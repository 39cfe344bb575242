"""Upload, base64, raw bytes or URL → bytes, with every limit.

What is wrong with one picture among several becomes that picture's outcome; what is wrong with the
request is raised.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import QueryParams
from starlette.requests import Request

from models.manifest import Activation
from models.tokenizer import TokenizedText
from prompts.labels import Label
from service.body import Parsed, body_kind, parse_fields, parse_json, read_body, read_form
from service.errors import InvalidRequestError, RequestError, TooLargeError, UrlForbiddenError
from service.forms import Fields
from service.schemas import (
    ClassifierBody,
    ClassifyBody,
    ClassifyOptions,
    EmbedBody,
    EmbedOptions,
    ImageSource,
    Labels,
)
from service.settings import Settings

if TYPE_CHECKING:
    from service.fetch import ByteBudget, PictureFetcher

# A picture's file, an embedding (D,) made earlier, or what is wrong with it.
Picture = bytes | NDArray[np.float32] | Exception
Kind = Literal["text", "image"]

_REPEATED = {"labels", "templates"}  # the fields that a form or query may give several times
_MAX_FIELDS = 20_000


@dataclass(frozen=True, kw_only=True)
class RemotePicture:
    """A picture that is still to be fetched, and the field of the request that its address stood in."""

    url: str
    field: str


PictureSource = Picture | RemotePicture
Embeddable = str | TokenizedText | PictureSource


@dataclass(frozen=True, kw_only=True)
class ClassRequest:
    """Which classes: labels and how they become prompts, or the name of a classifier."""

    labels: tuple[Label, ...] | None
    classifier: str | None = None
    template_set: str | None = None
    templates: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """``POST /classify``, whatever body it came in. ``single``: a bad picture fails the request."""

    pictures: tuple[PictureSource, ...]
    single: bool
    classes: ClassRequest
    activation: Activation | None
    top_k: int | None
    model: str | None


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """``POST /embed``, whatever body it came in."""

    inputs: tuple[Embeddable, ...]
    kinds: tuple[Kind, ...]
    encoding: Literal["float", "base64"]
    truncate: Literal["end", "error"]
    model: str | None


@dataclass(frozen=True, kw_only=True)
class ClassifierRequest:
    """``PUT /classifiers/{name}``."""

    classes: ClassRequest
    model: str | None


@dataclass(frozen=True)
class InputReader:
    """Reads requests within the limits of ``settings``; everything it raises is in ``service.errors``.

    Without a ``fetcher`` pictures cannot be given by their address.
    """

    settings: Settings
    fetcher: PictureFetcher | None = None

    async def classify(self, request: Request) -> ClassifyRequest:
        """``POST /classify``: JSON, a form, or a bare picture with its options in the query."""
        kind = body_kind(request)
        if kind == "json":
            body = parse_json(await self._body(request), ClassifyBody)
            return self._classify_request(self._pictures(body), body, single=body.images is None)
        if kind == "form":
            fields = await self._form(request)
            files = [self._file(part, "image") for name, part in fields if name == "image"]
            if not files:
                raise InvalidRequestError("image: the form has no part of this name")
        else:
            fields = _query(request.query_params)
            files = [self._file(await self._body(request), "body")]
        options = parse_fields(_options(fields, without={"image"}), ClassifyOptions)
        return self._classify_request(files, options, single=len(files) == 1)

    async def embed(self, request: Request) -> EmbedRequest:
        """``POST /embed``: JSON, a form, or a bare picture with its options in the query."""
        kind = body_kind(request)
        inputs: list[Embeddable]
        kinds: list[Kind]
        options: EmbedOptions
        if kind == "json":
            options = body = parse_json(await self._body(request), EmbedBody)
            inputs = [
                self.text(one.text, f"inputs[{place}].text")
                if one.image is None
                else self._picture(one.image, f"inputs[{place}].image")
                for place, one in enumerate(body.inputs)
            ]
            kinds = ["text" if one.image is None else "image" for one in body.inputs]
        elif kind == "form":
            fields = await self._form(request)
            options = parse_fields(_options(fields, without={"image", "text"}), EmbedOptions)
            inputs = [
                self._file(part, "image") if name == "image" else self.text(part, "text")
                for name, part in fields
                if name in {"image", "text"}
            ]
            kinds = ["text" if name == "text" else "image" for name, _ in fields if name in {"image", "text"}]
            if not inputs:
                raise InvalidRequestError("image, text: the form has neither")
        else:
            options = parse_fields(_options(_query(request.query_params)), EmbedOptions)
            inputs, kinds = [self._file(await self._body(request), "body")], ["image"]
        self.check_count(len(inputs), "inputs")
        return EmbedRequest(
            inputs=tuple(inputs),
            kinds=tuple(kinds),
            encoding=options.encoding,
            truncate=options.truncate,
            model=options.model,
        )

    async def classifier(self, request: Request) -> ClassifierRequest:
        """``PUT /classifiers/{name}``: JSON."""
        body_kind(request, accepted=("json",))
        return classifier_request(parse_json(await self._body(request), ClassifierBody))

    async def json(self, request: Request, schema: type[Parsed]) -> Parsed:
        """A body in JSON, held to its schema, whatever its Content-Type says."""
        return parse_json(await self._body(request), schema)

    def picture(self, text: str, field: str) -> PictureSource:
        """A picture in one string, as other servers take it: base64, a data URI or an address."""
        try:
            if text[:8].lower().startswith(("http://", "https://")):
                return self._remote(text, field)
            return self._file(_decode(text, field), field)
        except InvalidRequestError as error:
            return error

    def text(self, text: str | bytes | None, field: str) -> str | Exception:
        """A text within the limits, or what is wrong with it."""
        if not isinstance(text, str):
            return InvalidRequestError(f"{field}: must be text, not a file")
        if len(text) > self.settings.max_text_length:
            return TooLargeError(
                f"{field}: has {len(text)} characters, at most {self.settings.max_text_length} are allowed"
            )
        return text

    def check_count(self, count: int, field: str) -> None:
        """Hold a request to the number of items it may have.

        Raises:
            TooLargeError: there are more; the text names the limit.
        """
        if count > (limit := self.settings.item_limit):
            raise TooLargeError(f"{field}: {count} are given, at most {limit} are allowed")

    async def fetch(self, pictures: Sequence[RemotePicture]) -> list[bytes | Exception]:
        """Each picture, all fetched side by side, or what was wrong with that one alone."""
        from service.fetch import ByteBudget  # its HTTP client takes longer to import than FastAPI's half

        budget = ByteBudget(self.settings.max_body_bytes)
        return await asyncio.gather(*(self._fetch(picture, budget) for picture in pictures))

    async def _fetch(self, picture: RemotePicture, budget: ByteBudget) -> bytes | Exception:
        assert self.fetcher is not None
        try:
            return await self.fetcher.fetch(picture.url, budget)
        except RequestError as error:
            return type(error)(f"{picture.field}: {error}")

    def _classify_request(
        self, pictures: Sequence[PictureSource], options: ClassifyOptions, *, single: bool
    ) -> ClassifyRequest:
        self.check_count(len(pictures), "images")
        if (options.labels is None) == (options.classifier is None):
            raise InvalidRequestError("labels, classifier: give exactly one of them")
        if options.classifier is not None and (options.template_set or options.templates):
            raise InvalidRequestError("classifier: a named one has its own templates; leave the others out")
        return ClassifyRequest(
            pictures=tuple(pictures),
            single=single,
            classes=ClassRequest(
                labels=None if options.labels is None else _labels(options.labels),
                classifier=options.classifier,
                template_set=options.template_set,
                templates=_templates(options.template_set, options.templates),
            ),
            activation=options.activation,
            top_k=options.top_k,
            model=options.model,
        )

    def _pictures(self, body: ClassifyBody) -> list[PictureSource]:
        if body.image is not None and body.images is None:
            return [self._picture(body.image, "image")]
        if body.images is not None and body.image is None:
            return [self._picture(source, f"images[{place}]") for place, source in enumerate(body.images)]
        raise InvalidRequestError("image, images: give exactly one of them")

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self.settings.max_body_bytes)

    async def _form(self, request: Request) -> Fields:
        limits = self.settings
        return await read_form(
            request, limits.max_body_bytes, max_files=limits.item_limit, max_fields=_MAX_FIELDS
        )

    def _picture(self, source: ImageSource, field: str) -> PictureSource:
        """One picture of a JSON body; what is wrong with it alone is returned, not raised."""
        try:
            if source.embedding is not None:
                return _embedding(source.embedding, f"{field}.embedding")
            if source.base64 is not None:
                return self._file(_decode(source.base64, f"{field}.base64"), f"{field}.base64")
            return self._remote(source.url or "", f"{field}.url")
        except (InvalidRequestError, TooLargeError) as error:
            return error

    def _remote(self, url: str, field: str) -> PictureSource:
        if self.fetcher is None:
            return UrlForbiddenError(f"{field}: this server does not fetch pictures from addresses")
        return RemotePicture(url=url, field=field)

    def _file(self, part: str | bytes, field: str) -> Picture:
        if isinstance(part, str):
            return InvalidRequestError(
                f"{field}: must be a file, but its part of the form has no filename, which makes it text"
            )
        if len(part) > self.settings.max_image_bytes:
            return TooLargeError(
                f"{field}: the picture has {len(part)} bytes,"
                f" at most {self.settings.max_image_bytes} are allowed"
            )
        return part


def _decode(text: str, field: str) -> bytes:
    """Base64, or a data URI of it."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{field}: is not base64") from error


def _embedding(given: list[float] | str, field: str) -> NDArray[np.float32]:
    if isinstance(given, str):
        data = _decode(given, field)
        if len(data) % 4:
            raise InvalidRequestError(f"{field}: has {len(data)} bytes, which are no whole float32 numbers")
        with np.errstate(invalid="ignore"):  # what is no number is refused below
            vector = np.frombuffer(data, "<f4").astype(np.float64)
    else:
        vector = np.asarray(given, np.float64)
    with np.errstate(over="ignore"):  # what overflows even float64 is refused below
        length = np.linalg.norm(vector)
    if not np.isfinite(length) or length == 0:
        raise InvalidRequestError(f"{field}: must be finite numbers that are not all zero")
    return (vector / length).astype(np.float32)


def classifier_request(body: ClassifierBody) -> ClassifierRequest:
    """What a body of ``PUT /classifiers/{name}``, or a file of that shape, asks for."""
    return ClassifierRequest(
        classes=ClassRequest(
            labels=_labels(body.labels),
            template_set=body.template_set,
            templates=_templates(body.template_set, body.templates),
        ),
        model=body.model,
    )


def _labels(labels: Labels) -> tuple[Label, ...]:
    return tuple(
        Label(one) if isinstance(one, str) else Label(one.label, tuple(one.prompts)) for one in labels
    )


def _templates(template_set: str | None, templates: Sequence[str] | None) -> tuple[str, ...] | None:
    if template_set is not None and templates is not None:
        raise InvalidRequestError("template_set, templates: give at most one of them")
    return None if templates is None else tuple(templates)


def _query(query: QueryParams) -> Fields:
    return list(query.multi_items())


def _options(fields: Iterable[tuple[str, str | bytes]], without: Iterable[str] = ()) -> dict[str, object]:
    """Fields by name; those that may be repeated as lists."""
    options: dict[str, object] = {}
    for name, value in fields:
        if name in without:
            continue
        if name in _REPEATED:
            repeated = options.setdefault(name, [])
            assert isinstance(repeated, list)
            repeated.append(value)
        elif name in options:
            raise InvalidRequestError(f"{name}: is given twice")
        else:
            options[name] = value
    return options

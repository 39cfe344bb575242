"""The one table from exceptions to HTTP answers, as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models import errors as models
from prompts import errors as prompts
from service.batcher import BatcherStoppedError, DeadlineExceededError, QueueFullError


class RequestError(Exception):
    """What is wrong with a request itself. The text names the field and the limit."""


class MalformedBodyError(RequestError):
    """The body is not the JSON or multipart it says it is."""


class TooLargeError(RequestError):
    """Body, picture bytes, items, labels or text are over a limit."""


class UnsupportedBodyError(RequestError):
    """The Content-Type is none that the route takes."""


class InvalidRequestError(RequestError):
    """Well-formed and wrong."""


class UrlForbiddenError(RequestError):
    """The address of a picture is one that this server does not ask."""


class UrlFailedError(RequestError):
    """The address of a picture was asked, and no picture came."""


class UrlTimeoutError(RequestError):
    """The address of a picture was asked, and a limit of time passed."""


class RateLimitedError(Exception):
    """The holder of a key asks for more than its share."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(Exception):
    """Starting or draining."""


class UnauthorizedError(Exception):
    """A key is needed, and is missing or wrong."""


class ForbiddenError(Exception):
    """Nobody may do this on this server."""


@dataclass(frozen=True)
class Status:
    """How one kind of exception is answered; ``code`` is stable and meant for programs."""

    status: int
    code: str
    title: str


# The body of an error's answer, made of its status and the sentence a client may read.
ErrorBody = Callable[[Status, str], dict[str, Any]]

_LOG = logging.getLogger("clipserve.errors")
_FOLDERS = re.compile(r"(?<![\w./])(?:~|\.{1,2})?/(?:[^\s/'\":]+/)*(?=[^\s/'\":])")
_INTERNAL = Status(500, "internal_error", "Internal error")

# The first class that fits wins, so a subclass stands above its base.
_TABLE: tuple[tuple[type[Exception], Status], ...] = (
    (MalformedBodyError, Status(400, "malformed_body", "Malformed body")),
    (UnauthorizedError, Status(401, "unauthorized", "Unauthorized")),
    (ForbiddenError, Status(403, "forbidden", "Forbidden")),
    (models.UnknownModelError, Status(404, "unknown_model", "Unknown model")),
    (prompts.UnknownTemplateSetError, Status(404, "unknown_template_set", "Unknown template set")),
    (prompts.UnknownClassifierError, Status(404, "unknown_classifier", "Unknown classifier")),
    (TooLargeError, Status(413, "too_large", "Over a limit")),
    (models.ImageTooLargeError, Status(413, "image_too_large", "Picture over a limit")),
    (UnsupportedBodyError, Status(415, "unsupported_body", "Unsupported body type")),
    (
        models.UnsupportedImageFormatError,
        Status(415, "unsupported_image_format", "Unsupported picture format"),
    ),
    (models.InvalidImageError, Status(422, "invalid_image", "Picture cannot be decoded")),
    (models.TextTooLongError, Status(422, "text_too_long", "Text too long")),
    (models.UnknownTokenError, Status(422, "unknown_token", "Unknown token id")),
    (prompts.TooManyLabelsError, Status(413, "too_many_labels", "Too many labels")),
    (prompts.LabelError, Status(422, "invalid_labels", "Invalid labels")),
    (prompts.TemplateError, Status(422, "invalid_templates", "Invalid templates")),
    (prompts.ClassifierNameError, Status(422, "invalid_classifier_name", "Invalid classifier name")),
    (prompts.StoreUnavailableError, Status(503, "store_unavailable", "Store of classifiers not available")),
    (prompts.StoreError, Status(507, "store_failed", "Classifier cannot be stored or read")),
    (prompts.PromptError, Status(422, "invalid_request", "Invalid request")),
    (InvalidRequestError, Status(422, "invalid_request", "Invalid request")),
    (UrlForbiddenError, Status(422, "url_forbidden", "Address not allowed")),
    (UrlFailedError, Status(422, "url_failed", "Picture cannot be fetched")),
    (QueueFullError, Status(429, "queue_full", "Queue full")),
    (RateLimitedError, Status(429, "rate_limited", "Rate limit")),
    (UnavailableError, Status(503, "unavailable", "Not available")),
    (models.ManifestError, Status(503, "broken_model", "Broken model")),
    (models.RuntimeUnavailableError, Status(503, "runtime_unavailable", "Runtime not available")),
    (BatcherStoppedError, Status(503, "engine_stopped", "Engine stopped")),
    (UrlTimeoutError, Status(504, "url_timeout", "Picture took too long to fetch")),
    (DeadlineExceededError, Status(504, "deadline_exceeded", "Deadline exceeded")),
    (TimeoutError, Status(504, "deadline_exceeded", "Deadline exceeded")),
)
STATUSES = (*dict.fromkeys(status for _, status in _TABLE), _INTERNAL)  # every one there is, once


def status_of(error: Exception) -> Status:
    """The row of the table for ``error``; an unforeseen one is a 500 that tells nothing of itself."""
    return next((status for kind, status in _TABLE if isinstance(error, kind)), _INTERNAL)


def message_of(error: Exception) -> str:
    """The sentence a client may read."""
    status = status_of(error)
    if status is _INTERNAL:
        return "the server failed on this request; its log has the details under the request id"
    text = str(error) or status.title
    return _without_folders(text) if status.status >= 500 else text


def _without_folders(text: str) -> str:
    """``text`` with the names of files, but not of the folders they lie in: those are the server's own."""
    return _FOLDERS.sub("", text)


def log_fault(outcomes: Iterable[object], ids: Mapping[str, str]) -> None:
    """Log the first of ``outcomes`` of which clients are told nothing, with the ``ids`` of the request."""
    for one in outcomes:
        if isinstance(one, Exception) and status_of(one).status in {500, 507}:
            _LOG.error("request failed", extra=dict(ids), exc_info=one)
            return


def url_reason(error: Exception) -> str:
    """Why a picture was not fetched, as a value of the metric ``rejected``."""
    return f"url_{status_of(error).code.removeprefix('url_')}"


def item_error(error: Exception) -> dict[str, str]:
    """The ``error`` of one item among several."""
    return {"code": status_of(error).code, "message": message_of(error)}


def named(error: Exception, field: str) -> Exception:
    """``error`` with the field before its text, unless it is there already or no field is to blame."""
    status = status_of(error).status
    if status >= 500 or status == 429 or str(error).startswith(field):
        return error
    return type(error)(f"{field}: {error}")


def problem_body(status: Status, detail: str) -> dict[str, Any]:
    """An error as RFC 9457 has it: the form of every route whose clients know no other."""
    return {
        "type": f"urn:clipserve:error:{status.code}",
        "title": status.title,
        "status": status.status,
        "code": status.code,
        "detail": detail,
    }


def message_body(status: Status, detail: str) -> dict[str, Any]:
    """An error as the clients of Hugging Face and Weaviate look for it."""
    return {"error": detail, "code": status.code}


def problem(error: Exception, body: ErrorBody = problem_body) -> Response:
    """The whole answer of a request that failed."""
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status.status == 401 else {}
    if status.status in {429, 503}:
        headers["Retry-After"] = str(max(1, math.ceil(getattr(error, "retry_after", 1.0))))
    return _answer(status, message_of(error), headers, body)


def http_problem(error: HTTPException, body: ErrorBody = problem_body) -> Response:
    """The answer for what the framework itself refuses, with its headers, such as ``Allow`` of a 405."""
    title = {404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Request refused")
    status = Status(error.status_code, title.lower().replace(" ", "_"), title)
    return _answer(status, error.detail, error.headers, body)


def _answer(status: Status, detail: str, headers: Mapping[str, str] | None, body: ErrorBody) -> Response:
    media_type = "application/problem+json" if body is problem_body else "application/json"
    content = orjson.dumps(body(status, detail))
    return Response(content, status.status, headers=headers, media_type=media_type)

"""Requests to be refused, and the shape that every refusal has."""

from __future__ import annotations

from typing import Any

from tests.apps import Client, base64
from tests.pictures import png

IMAGE = {"base64": base64(png())}


async def refused(client: Client, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The problem that a request is answered with, held to RFC 9457's shape."""
    answer = await client.request(method, path, **request)
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem.keys() == {"type", "title", "status", "code", "detail"}
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:clipserve:error:{problem['code']}"
    assert problem["detail"]
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (answer.status_code in {429, 503})
    return problem


def classify(**body: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/classify", {"json": {"image": IMAGE, "labels": ["a", "b"]} | body}

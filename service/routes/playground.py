"""``GET /``: the playground, a page that asks the same endpoints as everybody else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "playground"
_INDEX = "index.html"
# Written down, since what the standard library guesses depends on the machine.
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
# The page may talk to its own server alone; `blob:` is how a browser shows a picture that was dropped on it.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)


@dataclass(frozen=True, kw_only=True)
class _Asset:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str
    etag: str


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The playground. It holds nothing secret: what it asks the server for needs a key like any request."""
    return _answer(request, _assets()[_INDEX])


@router.api_route("/playground/{name:path}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    """A script, a style sheet or a picture of the page; 404 for any other name."""
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404)
    return _answer(request, found)


def _answer(request: Request, asset: _Asset) -> Response:
    # Asked for again each time, and sent again only when changed: an upgrade must not meet an old script.
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY, "ETag": asset.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


@cache
def _assets() -> dict[str, _Asset]:
    """Every file by its path within the folder; small enough to stay in memory, read at the first request."""
    return {
        path.relative_to(_FOLDER).as_posix(): _read(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _MEDIA_TYPES
    }


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    return _Asset(
        content=content,
        media_type=_MEDIA_TYPES[path.suffix],
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )

"""Headers that keep a browser from making more of an answer than it is."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_API = [*_ALWAYS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")]
# These pages run scripts from the place that FastAPI takes Swagger and ReDoc from.
_PAGES = [*_ALWAYS, (b"content-security-policy", b"frame-ancestors 'none'")]


class SecurityHeaders:
    """Adds the headers to every answer, whoever made it; what an answer says itself stands."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _PAGES if scope["path"].startswith(("/docs", "/redoc")) else _API

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in headers if one[0] not in said)]
            await send(message)

        await self._app(scope, receive, send_secured)

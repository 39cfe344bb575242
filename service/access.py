"""Who may do what. Decided on the headers alone: before a body is read, before a place is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForbiddenError, UnauthorizedError
from service.keys import Key, KeyRing, WatchedKeys
from service.rates import TokenBucket
from service.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Whose key came with a request, and what is left of their share."""

    key: Key
    bucket: TokenBucket | None


class Access:
    """Lets a request pass that carries a key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

    Without API keys all requests pass. Probes are open to all, ``/metrics`` if the settings say so, and
    the files of the playground: it is where a browser's user gives the key.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._watched = WatchedKeys(settings.read_keys, settings.api_keys_file)
        self._buckets: dict[str, TokenBucket] = {}
        self._use(self._watched.current())
        probes = ("/health/", "/.well-known/")
        self._open = (*probes, "/metrics") if settings.metrics_access == "open" else probes
        self._shows_page = settings.playground

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; who it is from is put into the scope as ``caller``."""
        if scope["type"] == "http" and not self._is_open(scope):
            scope["caller"] = self._admit(scope)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if path.startswith(self._open):
            return True
        reads_page = path == "/" or path.startswith("/playground/")
        return self._shows_page and reads_page and scope["method"] in {"GET", "HEAD"}

    def _use(self, api_keys: tuple[Key, ...]) -> None:
        admin = self._settings.read_admin_key()
        self._api_keys = api_keys
        self._ring = KeyRing(api_keys + ((admin,) if admin else ()))
        # Who keeps a name keeps what is left of the rate: a new key is no new share.
        buckets = {key.name: self._buckets.get(key.name) or _bucket(self._settings) for key in api_keys}
        self._buckets = {name: bucket for name, bucket in buckets.items() if bucket}

    def _admit(self, scope: Scope) -> Caller | None:
        if (api_keys := self._watched.current()) is not self._api_keys:
            self._use(api_keys)
        secret = _secret(scope)
        key = None if secret is None else self._ring.find(secret)
        if key is None:
            if self._api_keys:
                raise UnauthorizedError(
                    "Authorization: must be Bearer and an API key, or X-API-Key: the key alone"
                )
            return None
        bucket = None if key.is_admin else self._buckets.get(key.name)
        if bucket is not None:
            bucket.enter()
        return Caller(key, bucket)


def caller_of(scope: Scope) -> Caller | None:
    """Whose key came with the request, if any did."""
    caller: Caller | None = scope.get("caller")
    return caller


def charge_for(request: Request) -> Callable[[int], None] | None:
    """What is told how many items the request has beyond its first, if its key has a limit."""
    caller = caller_of(request.scope)
    return None if caller is None or caller.bucket is None else caller.bucket.charge


def require_admin(request: Request, settings: Settings) -> None:
    """Let only the holder of the admin key pass.

    Raises:
        ForbiddenError: the server has no admin key, so nobody may; or the key is not the admin's.
        UnauthorizedError: the key is missing or wrong.
    """
    if settings.admin_key is None:
        raise ForbiddenError(
            "this needs an admin key, and the server was started without CLIPSERVE_ADMIN_KEY"
        )
    caller = caller_of(request.scope)
    if caller is None:
        raise UnauthorizedError("Authorization: must be Bearer and the admin key")
    if not caller.key.is_admin:
        raise ForbiddenError("this needs the admin key; an API key is not enough")


def _secret(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value).strip()
        if name == b"authorization":
            scheme, _, secret = bytes(value).partition(b" ")
            if scheme.lower() == b"bearer":
                return secret.strip()
    return None


def _bucket(settings: Settings) -> TokenBucket | None:
    if not settings.rate_limit:
        return None
    return TokenBucket(
        rate=settings.rate_limit, burst=float(settings.rate_burst or max(1.0, settings.rate_limit))
    )

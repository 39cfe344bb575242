"""Who may do what."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from service.errors import ForbiddenError, UnauthorizedError
from service.settings import Settings


def require_admin(request: Request, settings: Settings) -> None:
    """Let only the holder of the admin key pass: ``Authorization: Bearer KEY``.

    Raises:
        ForbiddenError: the server has no admin key, so nobody may.
        UnauthorizedError: the key is missing or wrong.
    """
    if settings.admin_key is None:
        raise ForbiddenError(
            "this needs an admin key, and the server was started without CLIPSERVE_ADMIN_KEY"
        )
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = settings.admin_key.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), wanted):
        raise UnauthorizedError("Authorization: must be Bearer and the admin key")

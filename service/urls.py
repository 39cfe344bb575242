"""Addresses that clients name, taken apart by one strict parser that no second one contradicts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from urllib.parse import urljoin, urlsplit

from service.addresses import Address
from service.errors import UrlForbiddenError

_PORTS = {"http": 80, "https": 443}
_MAX_LENGTH = 2048
_PRINTABLE = re.compile(r"[\x21-\x5b\x5d-\x7e]*")  # ASCII that shows, but no backslash
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, kw_only=True)
class Url:
    """An http or https address without credentials and fragment. ``target``: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Take ``text`` apart.

        Raises:
            UrlForbiddenError: it is none of the kind that may be fetched; the text says why.
        """
        if len(text) > _MAX_LENGTH:
            raise UrlForbiddenError(f"has {len(text)} characters, at most {_MAX_LENGTH} are allowed")
        if not _PRINTABLE.fullmatch(text):
            raise UrlForbiddenError(
                "must be ASCII without spaces and backslashes; other characters are written as %XX,"
                " and in names as xn--"
            )
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UrlForbiddenError("is not a valid address") from error
        if parts.scheme not in _PORTS:
            raise UrlForbiddenError("must begin with http:// or https://")
        if "@" in parts.netloc:
            raise UrlForbiddenError("must not carry a user name or password")
        return cls(
            scheme=parts.scheme,
            host=_check_host(parts.hostname or "", bracketed="[" in parts.netloc),
            port=_PORTS[parts.scheme] if port is None else port,
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        )

    def redirected(self, location: str) -> Url:
        """Where a redirect with this ``Location`` leads.

        Raises:
            UrlForbiddenError: nowhere that may be fetched, or from https to http.
        """
        try:
            following = Url.parse(urljoin(str(self), location))
        except (ValueError, UrlForbiddenError) as error:
            raise UrlForbiddenError("redirects to an address that is not allowed") from error
        if self.scheme == "https" and following.scheme == "http":
            raise UrlForbiddenError("redirects from https to http")
        return following

    @property
    def address(self) -> Address | None:
        """The IP address, if the host is one and no name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """The value of the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def is_host_pattern(text: str) -> bool:
    """Whether ``text`` is a lower-case host name, perhaps with ``*.`` before it for all names below."""
    name = text.removeprefix("*.")
    return "." in name and _HOST_NAME.fullmatch(name) is not None


def matches(host: str, patterns: Iterable[str]) -> bool:
    """Whether a host is among the ``patterns``; ``*.example.com`` is not ``example.com``, ``*`` is all."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*") else host == pattern for pattern in patterns
    )


def _check_host(host: str, *, bracketed: bool) -> str:
    """A host name without a final dot, or an IP address in its one usual spelling.

    ``127.1``, ``0x7f000001`` and ``017700000001`` are addresses to a resolver and names to a careless
    check, so whatever ends in a number must be four decimal ones (WHATWG URL, "ends in a number").
    """
    host = host.removesuffix(".")
    try:
        if bracketed:
            address = IPv6Address(host)
            if address.scope_id is not None:
                raise UrlForbiddenError("its host must not have a zone")
            return str(address)
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except AddressValueError as error:
        raise UrlForbiddenError("its host is not a valid address") from error
    if not _HOST_NAME.fullmatch(host):
        raise UrlForbiddenError("its host is not a valid name")
    return host

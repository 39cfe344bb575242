"""Pictures from addresses that clients name, without reaching for a client what only the server can reach.

A name is resolved once, every address it has must be on the public internet, and one of exactly these is
connected to: a name that resolves to something else a moment later (DNS rebinding) gains nothing. Each
redirect starts anew. A forbidden address is never connected to, so no answer can tell what is there.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore

from service.addresses import Address, is_public
from service.errors import TooLargeError, UrlFailedError, UrlForbiddenError, UrlTimeoutError
from service.urls import Url, matches

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4  # tried one after the other, within the time to connect
_HEADERS = [
    ("User-Agent", "clipserve"),
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
]


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Bytes of one picture; seconds to connect, between two reads, and for all of it with redirects."""

    max_bytes: int = 16 * 2**20
    connect_seconds: float = 3.0
    read_seconds: float = 5.0
    total_seconds: float = 10.0


class ByteBudget:
    """Bytes that the pictures of one request may have together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def take(self, count: int) -> None:
        """Use ``count`` of them up.

        Raises:
            TooLargeError: fewer were left.
        """
        self._left -= count
        if self._left < 0:
            raise TooLargeError(
                f"the pictures that are fetched for one request may have {self._limit} bytes together"
            )


class PictureFetcher:
    """Fetches pictures over http and https. Lives on one event loop.

    Args:
        hosts: names that may be asked, ``*.example.com`` for all below ``example.com``, ``*`` for all.
        ports: TCP ports that may be connected to.
        concurrency: pictures fetched at once; further ones wait, within their total time.
        resolve: name and port → IP addresses, raising OSError; default: the system's resolver.
        accept: whether an address may be connected to.
        tls: whom to trust; default: the system's authorities and certifi's.
    """

    def __init__(
        self,
        *,
        limits: FetchLimits | None = None,
        hosts: Collection[str] = ("*",),
        ports: Collection[int] = (80, 443),
        concurrency: int = 16,
        resolve: Resolver | None = None,
        accept: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or FetchLimits()
        self._hosts = hosts
        self._ports = ports
        self._places = asyncio.Semaphore(concurrency)
        # Threads of its own: names whose servers never answer must not hold up anything else.
        self._resolvers = ThreadPoolExecutor(concurrency, thread_name_prefix="resolve")
        self._resolve = resolve or self._system_resolve
        self._accept = accept
        self._tls = tls or httpcore.default_ssl_context()

    async def fetch(self, url: str, budget: ByteBudget | None = None) -> bytes:
        """The bytes behind ``url``.

        Raises:
            UrlForbiddenError: the address, or one that it redirects to, may not be asked.
            UrlFailedError: no picture came.
            UrlTimeoutError: a limit of time passed.
            TooLargeError: there are more bytes than allowed, for this picture or within ``budget``.
        """
        seconds = self._limits.total_seconds
        try:
            async with asyncio.timeout(seconds), self._places:
                return await self._follow(Url.parse(url), budget or ByteBudget(self._limits.max_bytes))
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise UrlTimeoutError(f"its server took too long; a picture may take {seconds:g} s") from error
        except (OSError, UnicodeError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise UrlFailedError("the connection to its server failed") from error

    def close(self) -> None:
        """Let go of the resolver's threads."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _follow(self, url: Url, budget: ByteBudget) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._answer(url) as answer:
                if answer.status not in _REDIRECTS:
                    return await self._read(answer, budget)
                url = url.redirected(_header(answer, b"location"))
        raise UrlFailedError(f"redirects more than {_MAX_REDIRECTS} times")

    @asynccontextmanager
    async def _answer(self, url: Url) -> AsyncIterator[httpcore.Response]:
        """The head of an answer, its body still to be read, on a connection for it alone."""
        limits = self._limits
        seconds = {
            "connect": limits.connect_seconds,
            "read": limits.read_seconds,
            "write": limits.read_seconds,
        }
        request = httpcore.URL(
            scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target.encode()
        )
        connection = httpcore.AsyncHTTPConnection(
            origin=request.origin,
            ssl_context=self._tls,
            network_backend=_Pinned(await self._permitted(url)),
        )
        async with (
            connection,
            connection.stream(
                "GET",
                request,
                headers=[("Host", url.authority), *_HEADERS],
                extensions={"timeout": seconds},
            ) as answer,
        ):
            yield answer

    async def _permitted(self, url: Url) -> list[Address]:
        """The addresses of the host, each of which may be connected to."""
        if url.port not in self._ports:
            allowed = ", ".join(str(port) for port in sorted(self._ports))
            raise UrlForbiddenError(f"port {url.port} is not allowed; allowed: {allowed}")
        if not matches(url.host, self._hosts):
            raise UrlForbiddenError("its host is not among those that this server may ask")
        addresses = [url.address] if url.address else await self._lookup(url)
        # One sentence for an unknown name and for one that leads inside: which it is, is not for clients.
        if not addresses or not all(self._accept(address) for address in addresses):
            raise UrlForbiddenError("its host has no address on the public internet")
        return addresses[:_MAX_ADDRESSES]

    async def _lookup(self, url: Url) -> list[Address]:
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                found = await self._resolve(url.host, url.port)
        except TimeoutError:
            raise
        except (OSError, UnicodeError):
            return []
        return list(dict.fromkeys(ip_address(address) for address in found))

    async def _system_resolve(self, host: str, port: int) -> Sequence[str]:
        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in found]

        return await asyncio.get_running_loop().run_in_executor(self._resolvers, look_up)

    async def _read(self, answer: httpcore.Response, budget: ByteBudget) -> bytes:
        if answer.status != 200:
            raise UrlFailedError(f"its server answered with status {answer.status}")
        # A few compressed bytes may hide gigabytes, and pictures are compressed as they are.
        if _header(answer, b"content-encoding").lower() not in {"", "identity"}:
            raise UrlFailedError("its server sent it compressed, which was not asked for")
        limit = self._limits.max_bytes
        too_large = TooLargeError(f"the picture has more than the {limit} bytes that are allowed")
        declared = _header(answer, b"content-length")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        content = bytearray()
        async for chunk in answer.aiter_stream():
            if len(content) + len(chunk) > limit:
                raise too_large
            budget.take(len(chunk))
            content += chunk
        return bytes(content)


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever name the connection is for."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 (to resolve it again is what must not happen)
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError()
        async with asyncio.timeout(timeout):
            for address in self._addresses:
                try:
                    return await self._network.connect_tcp(
                        str(address), port, local_address=local_address, socket_options=socket_options
                    )
                except httpcore.ConnectError as error:
                    failure = error
        raise failure


def _header(answer: httpcore.Response, name: bytes) -> str:
    values = [value for key, value in answer.headers if key.lower() == name]
    return b", ".join(values).decode("latin-1").strip()

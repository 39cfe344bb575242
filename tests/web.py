"""A web server on a loopback address that counts its connections and answers as badly as a test asks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Page = Callable[[], AsyncIterator[bytes]]

# Two addresses of the loopback network: tests declare one to be the internet, the other is forbidden.
PUBLIC, FORBIDDEN = "127.0.0.2", "127.0.0.1"


@dataclass
class Web:
    """``pages`` by path and query; anything else is a 404. ``requests`` holds the heads as they came."""

    port: int = 0
    pages: dict[str, Page] = field(default_factory=dict)
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    answering: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answering = asyncio.create_task(self._answer(reader, writer))
        self.answering.add(answering)
        await asyncio.wait([answering])
        self.answering.discard(answering)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            async for part in self.pages.get(head.split()[1], page(b"", "404 Not Found"))():
                writer.write(part)
                await writer.drain()


@asynccontextmanager
async def web(host: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    site = Web()
    server = await asyncio.start_server(site.serve, host, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for answering in site.answering:
            answering.cancel()
        async with asyncio.timeout(5):
            while site.answering:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


def page(body: bytes, status: str = "200 OK", *, length: int | None = None, **headers: str) -> Page:
    """A whole answer; ``length`` is declared in place of the true one."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return pieces("\r\n".join([*lines, "", ""]).encode(), body)


def redirect(location: str, status: str = "302 Found") -> Page:
    return page(b"", status, Location=location)


def pieces(*parts: bytes, pause: float = 0.0) -> Page:
    """Bytes as they are, one after the other."""

    async def send() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(pause)

    return send


def endless(*, pause: float = 0.0, size: int = 65536) -> Page:
    """A body without end and without a declared length."""

    async def send() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            yield b"x" * size
            await asyncio.sleep(pause)

    return send


def silent() -> Page:
    """Nothing at all, for as long as the client waits."""
    return pieces(b"", pause=60)

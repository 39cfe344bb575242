"""Heads of requests that do not end, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from service import protocol
from service.protocol import HEAD_BYTES, GuardedHttp

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
SECONDS = 0.3


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200, on /slow only after longer than a head may take."""
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * SECONDS)
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", SECONDS)
    config = uvicorn.Config(slow_app, port=0, http=GuardedHttp, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    monkeypatch.setattr(server, "capture_signals", contextlib.nullcontext)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server closes."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20 * SECONDS)
    return b""


@pytest.mark.parametrize("head", [b"", b"G", HEAD], ids=["nothing", "a byte", "half a head"])
async def test_a_head_that_does_not_end_ends_the_connection(port: int, head: bytes) -> None:
    async with connected(port) as (reader, writer):
        writer.write(head)
        assert await rest(reader) == b""


async def test_a_head_that_trickles_in_gains_no_time(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(HEAD)

        async def trickle() -> None:
            while True:
                writer.write(b"a: b\r\n")
                await asyncio.sleep(SECONDS / 10)

        trickling = asyncio.create_task(trickle())
        assert await rest(reader) == b""
        trickling.cancel()


async def test_a_head_without_end_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 60.0)
    sent = 0
    async with connected(port) as (reader, writer):
        writer.write(HEAD)
        with contextlib.suppress(ConnectionError):
            while sent < 100 * HEAD_BYTES:
                writer.write(b"a: " + b"b" * 1000 + b"\r\n")
                sent += 1005
                await writer.drain()
        answer = await rest(reader)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b"", "a reset may overtake the answer"
    assert sent < 100 * HEAD_BYTES


async def test_a_large_head_is_answered(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(HEAD + b"a: " + b"b" * (HEAD_BYTES // 2) + b"\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_time_and_size_are_those_of_heads_and_not_of_connections(port: int) -> None:
    """Idle between two requests, slow to answer, and with a body larger than any head."""
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (4 * HEAD_BYTES)
    async with connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(2 * SECONDS)
        writer.write(body + b"x" * HEAD_BYTES)
        await asyncio.sleep(2 * SECONDS)
        writer.write(b"x" * 3 * HEAD_BYTES)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        assert await rest(reader) == b"", "and the next head has its time again"


async def test_half_a_head_sent_ahead_ends_no_answer(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD)
        assert b" 200 " in await rest(reader)

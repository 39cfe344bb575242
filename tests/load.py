"""Steady load on a server: requests start at a fixed rate, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_MOST_AT_ONCE = 256


@dataclass
class Load:
    """What has been answered so far. A failure is any answer but 200, and any broken connection."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextlib.asynccontextmanager
async def steady_load(
    url: str, requests: Sequence[tuple[str, Mapping[str, Any]]], *, rate: float
) -> AsyncIterator[Load]:
    """POST the requests (path, arguments of ``httpx.post``) in turn, ``rate`` a second, until the end."""
    load = Load()
    limits = httpx.Limits(max_connections=_MOST_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        sending = asyncio.create_task(_send(client, requests, rate, load))
        try:
            yield load
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending


async def _send(
    client: httpx.AsyncClient, requests: Sequence[tuple[str, Mapping[str, Any]]], rate: float, load: Load
) -> None:
    began, under_way = time.monotonic(), set[asyncio.Task[None]]()
    try:
        for number, (path, arguments) in enumerate(itertools.cycle(requests)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            task = asyncio.create_task(_ask(client, path, arguments, load))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    finally:
        await asyncio.gather(*under_way)


async def _ask(client: httpx.AsyncClient, path: str, arguments: Mapping[str, Any], load: Load) -> None:
    began = time.monotonic()
    try:
        answer = await client.post(path, **arguments)
    except httpx.HTTPError as error:
        load.failures.append(repr(error))
    else:
        load.answered += 1
        load.slowest = max(load.slowest, time.monotonic() - began)
        if answer.status_code != 200:
            load.failures.append(f"{answer.status_code} {answer.text[:200]}")

"""The load generator: a closed loop of keep-alive connections, in a process of its own.

Requests are bytes made beforehand and answers are read but not parsed, so that it takes next to nothing of
the cores, which it shares with the server; how much it does take is measured as well.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks.processes import cpu_seconds, resident_bytes

_LARGEST_HEAD = 2**16
_ROUNDS = 2  # answers each connection gets within the window on average, at least


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send: ``concurrency`` connections take ``requests`` in turn for at least ``seconds``."""

    port: int
    server_pid: int
    requests: Sequence[bytes]
    concurrency: int
    seconds: float
    items: int = 1


class Generator:
    """The load generator's process."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def measure(self, load: Load) -> dict[str, float]:
        """Put ``load`` on the server and return the figures of ``_Run.figures``."""
        return self._pool.submit(_measure, load).result()


@contextmanager
def generator() -> Iterator[Generator]:
    """Start the process, and end it after the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        yield Generator(pool)


def ask(port: int, request: bytes) -> bytes:
    """Send one request and return the body of its answer."""

    async def once() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LARGEST_HEAD)
        try:
            writer.write(request)
            return await asyncio.wait_for(_answer(reader), timeout=60)
        finally:
            writer.close()

    return asyncio.run(once())


def _measure(load: Load) -> dict[str, float]:
    return uvloop.run(_Run(load).figures())


@dataclass
class _Run:
    load: Load
    finished: list[tuple[float, float]] = field(default_factory=list)
    stopping: bool = False

    async def figures(self) -> dict[str, float]:
        """Warm up until every connection had an answer, then count what ends within the window."""
        load, requests = self.load, itertools.cycle(self.load.requests)
        tasks = [asyncio.create_task(self._connection(requests)) for _ in range(load.concurrency)]
        try:
            await self._until(lambda: len(self.finished) >= load.concurrency, tasks)
            began, cpu, own = time.perf_counter(), cpu_seconds(load.server_pid), time.process_time()
            enough = len(self.finished) + _ROUNDS * load.concurrency
            await self._until(
                lambda: time.perf_counter() - began >= load.seconds and len(self.finished) >= enough, tasks
            )
            ended, cpu = time.perf_counter(), cpu_seconds(load.server_pid) - cpu
            own = time.process_time() - own
            memory = resident_bytes(load.server_pid)
            self.stopping = True
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        latencies = np.array([last - first for first, last in self.finished if began <= last <= ended])
        p50, p95, p99 = 1000 * np.percentile(latencies, (50, 95, 99))
        items = len(latencies) * load.items
        return {
            "rate": items / (ended - began),
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            "cpu_seconds_per_item": cpu / items,
            "client_cpu_seconds_per_item": own / items,
            "resident_mb": memory / 1e6,
            "requests": float(len(latencies)),
        }

    async def _until(self, done: Callable[[], bool], tasks: Sequence[asyncio.Task[None]]) -> None:
        while not done():
            await asyncio.sleep(0.01)
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it

    async def _connection(self, requests: Iterator[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.load.port, limit=_LARGEST_HEAD)
        try:
            while not self.stopping:
                began = time.perf_counter()
                writer.write(next(requests))
                await _answer(reader)
                self.finished.append((began, time.perf_counter()))
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer to its end.

    Raises:
        RuntimeError: its status is not 200; the text begins with what the server said.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    if headers.get("transfer-encoding") == "chunked":
        body = await _chunks(reader)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    if " 200 " not in status:
        raise RuntimeError(f"{status}: {body[:300]!r}")
    return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body

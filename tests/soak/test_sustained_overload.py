"""Four times as many requests as a server can answer: it answers what it can and refuses the rest at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import pytest
import uvloop

from benchmarks.requests import forms
from tests.pictures import png
from tests.server import Server, running_server
from tests.soak.open_loop import closed_loop, open_loop
from tests.soak.vitals import Vitals
from tests.soak.wire import Connection, request

ITEMS = 4  # pictures of a request: they make the encoder, not HTTP, what decides how much is too much
AT_ONCE = 6  # requests the queue takes: so many that batches never starve, so few that nobody waits long
REQUESTS = forms(
    "/classify",
    [[png(ITEMS * number + item, 64, 64) for item in range(ITEMS)] for number in range(16)],
    [("labels", "red circle"), ("labels", "blue star")],
)
PROBES = [request("GET", path) for path in ("/health/live", "/health/ready", "/metrics")]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """How long it is tried, and what must hold."""

    seconds: float
    goodput: float
    slowdown: float
    probe_seconds: float
    growth: float


FULL = Promise(seconds=60, goodput=0.9, slowdown=3, probe_seconds=0.05, growth=0.02)
# On a machine that does other work besides, this shows what is broken, not what is slow.
SHORT = Promise(seconds=4, goodput=0.2, slowdown=50, probe_seconds=2, growth=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"models": "shapes", "inference_threads": 1, "decode_threads": 1, "max_queue": ITEMS * AT_ONCE}
    with running_server(tmp_path_factory.mktemp("overload"), **settings) as server:
        yield server


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "promise",
    [
        pytest.param(SHORT, marks=pytest.mark.e2e, id="short"),
        pytest.param(FULL, marks=pytest.mark.soak, id="full"),
    ],
)
def test_overload_is_refused_and_slows_nothing_down(server: Server, promise: Promise) -> None:
    port = int(server.url().rpartition(":")[2])
    uvloop.run(_hold_to(promise, port, server.process.pid))
    assert server.metric("admitted_items") == 0
    assert server.metric("rejected_total", reason="deadline_exceeded") == 0


async def _hold_to(promise: Promise, port: int, pid: int) -> None:
    await closed_loop(port, REQUESTS, clients=AT_ONCE, seconds=promise.seconds / 12)
    windows = [
        await closed_loop(port, REQUESTS, clients=AT_ONCE, seconds=promise.seconds / 12) for _ in range(4)
    ]
    peak = max(windows, key=lambda window: window.goodput)
    usual = await open_loop(port, REQUESTS, rate=0.8 * peak.goodput, seconds=promise.seconds / 2)
    await open_loop(port, REQUESTS, rate=4 * peak.goodput, seconds=promise.seconds / 12)
    before = Vitals.of(pid).memory
    probing = asyncio.create_task(_slowest_probe(port))
    flood = await open_loop(port, REQUESTS, rate=4 * peak.goodput, seconds=promise.seconds)
    probing.cancel()
    slowest = await probing
    growth = Vitals.of(pid).memory / before - 1
    print(
        f"peak {peak.goodput:.0f}/s; at 0.8: p99 {1000 * usual.p99:.1f} ms, {usual.refused.total()} refused;"
        f" at 4: {len(flood.seconds)} answered, {flood.goodput / peak.goodput:.1%} of the peak,"
        f" {flood.refused.total()} refused,"
        f" p99 {1000 * flood.p99:.1f} ms ({flood.p99 / usual.p99:.2f} times);"
        f" slowest probe {1000 * slowest:.1f} ms; memory {growth:+.2%}"
    )
    assert peak.refused.total() == 0
    assert {status for status, _ in flood.refused} == {429}
    assert all(retry_after is not None and int(retry_after) >= 1 for _, retry_after in flood.refused)
    assert flood.refused.total() > len(flood.seconds)
    assert flood.goodput >= promise.goodput * peak.goodput
    assert flood.p99 <= promise.slowdown * usual.p99
    assert slowest <= promise.probe_seconds
    assert growth <= promise.growth


async def _slowest_probe(port: int) -> float:
    """How long the slowest of all probes took, each on a connection of its own, until cancelled."""
    slowest = 0.0
    try:
        while True:
            for probe in PROBES:
                began = perf_counter()
                async with Connection(port) as connection:
                    assert (await connection.ask(probe)).status == 200
                slowest = max(slowest, perf_counter() - began)
                await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return slowest

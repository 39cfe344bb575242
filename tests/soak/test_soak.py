"""Hundreds of thousands of requests of every kind: each answer is right, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import perf_counter

import pytest
import uvloop

from tests.apps import load_alone, until
from tests.server import Server, running_server
from tests.soak.exchanges import Exchange, Exchanges
from tests.soak.vitals import Vitals
from tests.soak.wire import Connection, request

FULL, SHORT = 200_000, 5_000
CLIENTS = 32
DIFFERENT = 3_000  # exchanges; more than the caches below have room for
ABANDONED = 0.02  # of the requests, by clients that go away


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    caches = {"class_cache_bytes": 2**17, "matrix_cache_bytes": 2**16}
    with running_server(tmp_path, models="shapes", **caches) as server:
        yield server


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("count", "growth"),
    [
        pytest.param(SHORT, 0.1, marks=pytest.mark.e2e, id="short"),
        pytest.param(FULL, 0.02, marks=pytest.mark.soak, id="full"),
    ],
)
def test_every_answer_is_right_and_nothing_is_left_behind(
    server: Server, tmp_path: Path, count: int, growth: float
) -> None:
    exchanges = Exchanges(load_alone(tmp_path, "shapes"), Random(1))
    port, began = int(server.url().rpartition(":")[2]), perf_counter()
    made = exchanges.make(min(count, DIFFERENT))
    done = uvloop.run(_exchange([exchanges.put(), *made], port, count // 10, seed=1))
    uvloop.run(_fill_pools(port))
    early = uvloop.run(_at_rest(server))
    done += uvloop.run(_exchange(made, port, count - count // 10, seed=2))
    late = uvloop.run(_at_rest(server))
    print(
        f"{done.total()} requests in {perf_counter() - began:.0f} s, 0 wrong answers; memory"
        f" {early.memory / 1e6:.1f} → {late.memory / 1e6:.1f} MB ({late.memory / early.memory - 1:+.2%}),"
        f" descriptors {early.descriptors} → {late.descriptors}, threads {early.threads} → {late.threads}"
    )
    print(", ".join(f"{kind} {times}" for kind, times in done.most_common()))
    assert done.total() == count
    assert late.memory < (1 + growth) * early.memory
    assert late.descriptors <= early.descriptors
    assert late.threads <= early.threads


async def _exchange(exchanges: list[Exchange], port: int, count: int, *, seed: int) -> Counter[str]:
    """The first exchange, then ``count`` altogether in any order, by several clients at once."""
    random, done = Random(seed), Counter[str]()
    async with Connection(port) as connection:
        exchanges[0].check(await connection.ask(exchanges[0].request))
    done[exchanges[0].kind] += 1
    left = iter(range(count - 1))

    async def work() -> None:
        async with Connection(port) as connection:
            for _ in left:
                one = random.choice(exchanges)
                if random.random() < ABANDONED:
                    await connection.abandon(one.request, random.random() * 0.02)
                    done["abandoned"] += 1
                    continue
                answer = await connection.ask(one.request)
                try:
                    one.check(answer)
                except Exception as error:
                    error.add_note(
                        f"{one.kind}: {one.request[:200]!r} → {answer.status} {answer.body[:300]!r}"
                    )
                    raise
                done[one.kind] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(work())
    return done


async def _fill_pools(port: int) -> None:
    """Have the server start every thread it may have: pools start one only when all others are at work."""

    async def ask() -> None:
        async with Connection(port) as connection:
            for _ in range(8):
                await connection.ask(request("GET", "/models"))

    async with asyncio.TaskGroup() as group:
        for _ in range(2 * CLIENTS):
            group.create_task(ask())


async def _at_rest(server: Server) -> Vitals:
    """What the server holds once it has nothing to do."""
    await until(lambda: server.metric("admitted_items") == 0)
    await asyncio.sleep(2)
    return Vitals.of(server.process.pid)

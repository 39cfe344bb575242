"""Open loop: requests start when chance says so, whatever became of those before, as real users do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter

from tests.server import quantile
from tests.soak.wire import Answer, Connection


@dataclass
class Observed:
    """Every answer of a run; ``seconds`` count from when a request was due, not from when it was sent."""

    span: float
    seconds: list[float] = field(default_factory=list)
    refused: list[Answer] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answers of 200 a second."""
        return len(self.seconds) / self.span

    @property
    def p99(self) -> float:
        return quantile(self.seconds, 0.99)


async def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float) -> Observed:
    """Poisson arrivals at ``rate`` a second, the same for the same rate."""
    observed, random, idle = Observed(seconds), Random(rate), list[Connection]()

    async def ask(due: float, request: bytes) -> None:
        connection = idle.pop() if idle else Connection(port)
        answer = await connection.ask(request)
        idle.append(connection)
        if answer.status == 200:
            observed.seconds.append(perf_counter() - due)
        else:
            observed.refused.append(answer)

    due = began = perf_counter()
    async with asyncio.TaskGroup() as group:
        while (due := due + random.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            group.create_task(ask(due, random.choice(requests)))
    for connection in idle:
        await connection.close()
    return observed


async def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Observed:
    """Each client asks again as soon as it was answered: what the server can do at most."""
    observed, random, end = Observed(seconds), Random(0), perf_counter() + seconds

    async def work() -> None:
        async with Connection(port) as connection:
            while (began := perf_counter()) < end:
                answer = await connection.ask(random.choice(requests))
                if answer.status == 200:
                    observed.seconds.append(perf_counter() - began)
                else:
                    observed.refused.append(answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return observed

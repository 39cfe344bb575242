"""Open loop: requests start when chance says so, whatever became of those before, as real users do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter

from tests.server import quantile
from tests.soak.wire import Answer, Connection


@dataclass
class Observed:
    """Every answer of a run, none of them kept whole: collecting garbage would stop the clock for all.

    ``seconds`` of those that were 200, from when a request was due, not from when it was sent; ``refused``:
    how often each other status came, and with which ``Retry-After``.
    """

    span: float
    seconds: list[float] = field(default_factory=list)
    refused: Counter[tuple[int, str | None]] = field(default_factory=Counter)

    def note(self, answer: Answer, began: float) -> None:
        """``began``: when the request was due, on the clock of ``perf_counter``."""
        if answer.status == 200:
            self.seconds.append(perf_counter() - began)
        else:
            self.refused[answer.status, answer.headers.get("retry-after")] += 1

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
        observed.note(answer, due)

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
                observed.note(await connection.ask(random.choice(requests)), began)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return observed

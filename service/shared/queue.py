"""The way from a front to a batcher of the engine process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from service.batcher import Answer, BatcherStoppedError, Lane, QueueFullError
from service.served import Features
from service.shared.connection import Connection, EngineLostError
from service.shared.messages import Answered, QueueFacts, Submission

_BULK_ATTEMPTS = 3  # an item that ends whatever process encodes it must not do so for ever

# Packs items, and keeps what they take while they are worked on.
Carry = Callable[[Sequence[Any]], AbstractContextManager[bytes]]


class Line(Protocol):
    """Where there is a connection, and now and then there is none."""

    @property
    def failure(self) -> str | None:
        """Why there will be none any more."""
        ...

    def connection_now(self) -> Connection:
        """The connection, or an EngineLostError."""
        ...

    async def connection(self) -> Connection:
        """The connection, as soon as there is one."""
        ...


class RemoteQueue:
    """Meets ``EncoderQueue``. Which of its items wait and which run is not known here: all count as waiting.

    ``capacity`` bounds those of the interactive lane, and on top of it may be as many as the encoder runs
    at once.
    """

    def __init__(self, line: Line, *, model: str, encoder: str, capacity: int, carry: Carry) -> None:
        self._line = line
        self._model = model
        self._encoder = encoder
        self._capacity = capacity
        self._carry = carry
        self._held: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._expected_wait = 1.0
        self._closed = False

    async def submit(
        self, items: Sequence[Any], *, lane: Lane = "interactive", deadline: float | None = None
    ) -> Answer[Features]:
        """See ``Batcher.submit``. Where the engine process ends, the bulk lane waits for the next one."""
        if self._closed:
            raise BatcherStoppedError(f"the {self._encoder} encoder of {self._model} was closed")
        began = time.monotonic()
        with self._held_in(lane, len(items)), self._carry(items) as packed:
            ask = partial(self._ask, packed, len(items), lane, deadline)
            answered = await (ask() if lane == "interactive" else self._ask_patiently(ask))
        self._expected_wait = answered.expected_wait
        answer = answered.answer
        # The way there and back counts as waiting.
        return replace(answer, queue_seconds=max(0.0, time.monotonic() - began - answer.run_seconds))

    def waiting(self, lane: Lane) -> int:
        """Items that wait or run."""
        return self._held[lane]

    def expected_wait(self) -> float:
        """What the engine process said last."""
        return self._expected_wait

    @property
    def failure(self) -> str | None:
        """That this front cannot go on."""
        return self._line.failure

    async def close(self) -> None:
        """Take nothing more; what waits is answered when its host hangs up."""
        self._closed = True

    @contextlib.contextmanager
    def _held_in(self, lane: Lane, count: int) -> Iterator[None]:
        if lane == "interactive":
            in_flight = self._facts(self._line.connection_now()).in_flight
            held, limit = self._held[lane], self._capacity + in_flight
            if held + count > limit:
                raise QueueFullError(
                    f"{held} items wait for the {self._encoder} encoder of {self._model} or are in it,"
                    f" the limit is {limit}",
                    retry_after=self._expected_wait,
                )
        self._held[lane] += count
        try:
            yield
        finally:
            self._held[lane] -= count

    def _facts(self, connection: Connection) -> QueueFacts:
        return connection.models[self._model].queues[self._encoder]

    async def _ask(self, packed: bytes, count: int, lane: Lane, deadline: float | None) -> Answered:
        connection = self._line.connection_now()
        return await connection.ask(
            Submission(
                queue=self._facts(connection).number,
                lane=lane,
                deadline=deadline,
                count=count,
                items=packed,
            )
        )

    async def _ask_patiently(self, ask: Callable[[], Awaitable[Answered]]) -> Answered:
        for _ in range(_BULK_ATTEMPTS - 1):
            await self._line.connection()
            with contextlib.suppress(EngineLostError):
                return await ask()
        await self._line.connection()
        return await ask()

"""What a batcher runs and tells in tests: encoders that can be held up or poisoned, and who keeps count."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

PROMPTLY = 5.0  # seconds; whatever takes longer hangs


class PoisonError(ValueError):
    """What a run raises when it meets a poisoned item."""


class WorkerKilled(BaseException):
    """What ends a worker."""


@dataclass
class Encoder:
    """A ``run`` that notes its batches, and can be held up to let a queue grow behind it.

    A result is the item and the number of the run it came from, so that no two runs give the same.
    """

    poison: frozenset[object] = frozenset()
    faulty: frozenset[object] = frozenset()
    batches: list[list[object]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def __call__(self, items: Sequence[object]) -> list[object | Exception]:
        with self._lock:
            self.batches.append(list(items))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            assert self._open.wait(PROMPTLY)
            if self.poison.intersection(items):
                raise PoisonError(items)
            return [PoisonError(item) if item in self.faulty else ("done", item) for item in items]
        finally:
            with self._lock:
                self._at_once -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """No batch ends inside."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    @property
    def ran(self) -> Counter[object]:
        return Counter(item for batch in self.batches for item in batch)


@dataclass
class Ledger:
    """An observer that remembers."""

    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)

    def batch(self, *, size: int, seconds: float) -> None:
        self.sizes.append(size)
        self.seconds.append(seconds)

    def dropped(self, *, reason: str, count: int) -> None:
        self.drops[reason] += count


async def turns(count: int = 3) -> None:
    """Let the event loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PROMPTLY):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
            await asyncio.sleep(0.001)


def done(*items: object) -> list[object]:
    return [("done", item) for item in items]

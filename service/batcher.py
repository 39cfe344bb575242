"""The work-conserving batch queue. Knows neither HTTP nor ONNX: items in, one outcome an item out.

The moment a slot is free it takes everything that waits, up to ``max_batch``: no timer, no sleep. Alone, an
item never waits for company; under load, batches fill by themselves, since whatever arrives while a batch
runs makes up the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Lane = Literal["interactive", "bulk"]
DropReason = Literal["cancelled", "expired"]

_LOG = logging.getLogger("clipserve.batcher")
_RATE_MEMORY = 0.8  # weight of the past in the running average of items per second


class BatcherError(Exception):
    """Base of what the batcher itself answers an item with."""


class QueueFullError(BatcherError):
    """More waits already than ``capacity`` allows; nothing of the call was queued."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceededError(BatcherError):
    """The deadline passed before the item's turn came."""


class BatcherStoppedError(BatcherError):
    """The batcher was closed, or its worker died."""


class BatchObserver(Protocol):
    """Who is told what the batcher does; called on the event loop."""

    def batch(self, *, size: int, seconds: float) -> None:
        """A batch of ``size`` items ran for ``seconds``."""
        ...

    def dropped(self, *, reason: DropReason, count: int) -> None:
        """Items left the queue without having run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[Result]):
    """What ``submit`` returns: an outcome an item, in the order given, and where the time went.

    The times are those of the item that waited, or ran, longest; ``batch_size`` is that of the largest batch.
    """

    outcomes: list[Result | Exception]
    queue_seconds: float
    run_seconds: float
    batch_size: int


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    deadline: float | None
    queued_at: float
    started_at: float = 0.0
    finished_at: float = 0.0
    batch_size: int = 0


_Queue = OrderedDict[int, _Entry[Item, Result]]


class Batcher(Generic[Item, Result]):
    """Collects items of concurrent callers into batches for ``run``.

    Args:
        run: takes 1 to ``max_batch`` items and gives an outcome for each, in order; an outcome that is
            an exception fails its item alone. If ``run`` raises, the batch is split in halves and run
            again, so that one bad item fails alone. Called in a thread, at most ``slots`` at a time.
        slots: batches in flight at once.
        max_batch: items in a batch of the interactive lane, at most.
        company: while a batch runs, another one starts for no fewer items. They share the cores, and where
            a run costs much whatever it holds, small ones leave less of them to everybody.
        capacity: items that may wait in the interactive lane, at most.
        bulk_batch: items in a batch of the bulk lane, at most: what an interactive item may have to
            wait for; ``max_batch`` if left out. Bulk items run only when no interactive one waits.
        stall_seconds: a batch that runs for longer counts as a dead worker.
        observer: is told of every batch and every drop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        slots: int = 1,
        max_batch: int = 32,
        company: int = 1,
        capacity: int = 1024,
        bulk_batch: int | None = None,
        stall_seconds: float = 60.0,
        observer: BatchObserver | None = None,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self._run = run
        self._slots = slots
        self._company = company
        self._capacity = capacity
        self._bulk_batch = bulk_batch or max_batch
        self._stall_seconds = stall_seconds
        self._observer = observer
        self._lanes: dict[Lane, _Queue[Item, Result]] = {"interactive": OrderedDict(), "bulk": OrderedDict()}
        self._running: dict[int, list[_Entry[Item, Result]]] = {}
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix=f"batch-{name}")
        self._serial = 0
        self._items_per_second = 0.0
        self._pump_scheduled = False
        self._closed = False
        self._died = False
        self._idle = asyncio.Event()
        self._idle.set()

    # What callers do

    async def submit(
        self,
        items: Sequence[Item],
        *,
        lane: Lane = "interactive",
        deadline: float | None = None,
    ) -> Answer[Result]:
        """Queue ``items`` together and wait for all of them.

        ``deadline`` is on the clock of ``time.monotonic``. If the caller is cancelled, what has not
        started leaves the queue.

        Raises:
            QueueFullError: the items do not all fit; none was queued.
            BatcherStoppedError: it is closed, or its worker died.
        """
        self._check_open()
        if lane == "interactive" and self.waiting(lane) + len(items) > self._capacity:
            raise QueueFullError(
                f"the queue of {self.name} is full: {self.waiting(lane)} items wait,"
                f" the limit is {self._capacity}",
                retry_after=self.expected_wait(),
            )
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries: list[_Entry[Item, Result]] = [
            _Entry(item, loop.create_future(), deadline, now) for item in items
        ]
        first, self._serial = self._serial, self._serial + len(entries)
        self._lanes[lane].update(enumerate(entries, first))
        if entries:
            self._idle.clear()
            self._schedule_pump(loop)
        try:
            outcomes = await asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)
        except asyncio.CancelledError:
            self._forget(self._lanes[lane], range(first, first + len(entries)))
            raise
        return Answer(
            outcomes=[_as_outcome(outcome) for outcome in outcomes],
            queue_seconds=max((e.started_at - e.queued_at for e in entries if e.started_at), default=0.0),
            run_seconds=max((e.finished_at - e.started_at for e in entries if e.finished_at), default=0.0),
            batch_size=max((e.batch_size for e in entries), default=0),
        )

    def waiting(self, lane: Lane) -> int:
        """Items in a lane that no batch has taken yet."""
        return len(self._lanes[lane])

    def expected_wait(self) -> float:
        """Seconds until what waits now will have run, at the present speed; 1 where none is known yet."""
        if not self._items_per_second:
            return 1.0
        in_flight = sum(len(batch) for batch in self._running.values())
        return (self.waiting("interactive") + in_flight) / self._items_per_second

    @property
    def failure(self) -> str | None:
        """That the worker counts as dead, in words that probes may show, or None while it is well."""
        if self._died:
            return f"the worker of {self.name} died"
        started = min((batch[0].started_at for batch in self._running.values()), default=None)
        if started is not None and time.monotonic() - started > self._stall_seconds:
            return f"a batch of {self.name} has been running for more than {self._stall_seconds:g} s"
        return None

    async def drain(self) -> None:
        """Wait until nothing waits or runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Take nothing more, answer what waits with an error, and wait for what runs."""
        self._closed = True
        self._answer_all_waiting(BatcherStoppedError(f"{self.name} was closed"))
        if self.failure is None:  # what hangs would be waited for in vain
            await self.drain()
        self._threads.shutdown(wait=False)

    # How batches are made and run

    def _schedule_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        # Once per turn of the loop: callers that arrive in the same turn share a batch at no cost in time.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            loop.call_soon(self._pump, loop)

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pump_scheduled = False
        batch: list[_Entry[Item, Result]] = []
        try:
            while self._may_start() and (batch := self._next_batch()):
                self._start(batch, loop)
        except BaseException as error:  # such as a thread that the system refuses
            self._die(error, batch)
            raise
        self._note_idle()

    def _may_start(self) -> bool:
        """Whether a slot is free, and nothing runs or enough waits.

        Nobody waits for ever: what runs will end, and whatever starts before holds who has waited longest.
        """
        if len(self._running) >= self._slots:
            return False
        return not self._running or sum(map(len, self._lanes.values())) >= self._company

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        lane: Lane = "interactive" if self._lanes["interactive"] else "bulk"
        queue, limit = self._lanes[lane], self.max_batch if lane == "interactive" else self._bulk_batch
        batch: list[_Entry[Item, Result]] = []
        now = time.monotonic()
        while queue and len(batch) < limit:
            _, entry = queue.popitem(last=False)
            if entry.future.done():
                self._tell_dropped("cancelled", 1)
            elif entry.deadline is not None and entry.deadline <= now:
                entry.future.set_exception(DeadlineExceededError("the deadline passed while the item waited"))
                self._tell_dropped("expired", 1)
            else:
                entry.started_at = now
                batch.append(entry)
        # A lane that held nothing but dead entries must not hide the other one.
        return batch or (self._next_batch() if any(self._lanes.values()) else batch)

    def _start(self, batch: list[_Entry[Item, Result]], loop: asyncio.AbstractEventLoop) -> None:
        key = id(batch)
        job = self._threads.submit(self._run_isolated, [entry.item for entry in batch])
        self._running[key] = batch

        def report(done: ThreadFuture[list[Result | Exception]]) -> None:
            loop.call_soon_threadsafe(self._finish, key, done, loop)

        job.add_done_callback(report)

    def _run_isolated(self, items: list[Item]) -> list[Result | Exception]:
        """Run a batch; where it raises, halve it until the items that cause it stand alone."""
        try:
            outcomes = list(self._run(items))
            if len(outcomes) != len(items):
                raise RuntimeError(f"{self.name} gave {len(outcomes)} outcomes for {len(items)} items")
        except Exception as error:
            if len(items) == 1:
                return [error]
            middle = len(items) // 2
            return self._run_isolated(items[:middle]) + self._run_isolated(items[middle:])
        return outcomes

    def _finish(
        self,
        key: int,
        job: ThreadFuture[list[Result | Exception]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        batch = self._running.pop(key)
        if (fatal := job.exception()) is not None:
            self._die(fatal, batch)
            return
        now = time.monotonic()
        for entry, outcome in zip(batch, job.result(), strict=True):
            entry.finished_at = now
            entry.batch_size = len(batch)
            if entry.future.done():  # its caller went away while it ran
                continue
            if isinstance(outcome, Exception):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(outcome)
        self._note_speed(len(batch), now - batch[0].started_at)
        self._pump(loop)

    # Bookkeeping

    def _note_speed(self, size: int, seconds: float) -> None:
        if self._observer is not None:
            self._observer.batch(size=size, seconds=seconds)
        speed = size * self._slots / max(seconds, 1e-6)
        past = self._items_per_second or speed
        self._items_per_second = _RATE_MEMORY * past + (1 - _RATE_MEMORY) * speed

    def _tell_dropped(self, reason: DropReason, count: int) -> None:
        if self._observer is not None and count:
            self._observer.dropped(reason=reason, count=count)

    def _forget(self, queue: _Queue[Item, Result], serials: range) -> None:
        """The caller went away: its items give back their places at once."""
        gone = sum(queue.pop(serial, None) is not None for serial in serials)
        self._tell_dropped("cancelled", gone)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._running and not any(self._lanes.values()):
            self._idle.set()

    def _check_open(self) -> None:
        if self._died:
            raise BatcherStoppedError(f"the worker of {self.name} died")
        if self._closed:
            raise BatcherStoppedError(f"{self.name} was closed")

    def _die(self, error: BaseException, batch: Sequence[_Entry[Item, Result]] = ()) -> None:
        """The worker cannot go on: log why, and leave nobody waiting."""
        _LOG.critical("the worker of %s died", self.name, exc_info=error)
        self._died = True
        stopped = BatcherStoppedError(f"the worker of {self.name} died")
        for entry in batch:
            if not entry.future.done():
                entry.future.set_exception(stopped)
        self._answer_all_waiting(stopped)

    def _answer_all_waiting(self, error: Exception) -> None:
        for queue in self._lanes.values():
            while queue:
                _, entry = queue.popitem(last=False)
                if not entry.future.done():
                    entry.future.set_exception(error)
        self._note_idle()


def _as_outcome(outcome: Result | BaseException) -> Result | Exception:
    """``gather`` may also give a CancelledError of an item's future; nothing else cancels those."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        return BatcherStoppedError("the item was cancelled")
    return outcome

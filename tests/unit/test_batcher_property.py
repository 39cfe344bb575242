"""The batcher's promise: every item is answered exactly once, in its place, whatever fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, BatcherStoppedError, DeadlineExceededError, Lane, QueueFullError
from tests.encoders import PROMPTLY, Encoder, Ledger, PoisonError, WorkerKilled, turns


@dataclass(frozen=True)
class Call:
    """One caller: its items by kind, and what befalls it. Times are in turns of the event loop."""

    kinds: tuple[str, ...]
    lane: Lane
    wait: int
    cancel_after: int | None
    deadline: float | None


calls = st.builds(
    Call,
    kinds=st.lists(st.sampled_from(["good", "good", "good", "poison", "faulty"]), max_size=9).map(tuple),
    lane=st.sampled_from(["interactive", "interactive", "bulk"]),
    wait=st.integers(0, 4),
    cancel_after=st.none() | st.none() | st.integers(0, 6),
    deadline=st.none() | st.none() | st.sampled_from([-1.0, 0.0005, PROMPTLY]),
)


@settings(max_examples=250, deadline=None)
@given(
    schedule=st.lists(calls, min_size=1, max_size=12),
    max_batch=st.integers(1, 8),
    bulk_batch=st.integers(1, 8),
    company=st.integers(1, 4),
    slots=st.integers(1, 3),
    capacity=st.integers(1, 24),
    fate=st.sampled_from(["drain", "drain", "drain", "close", "kill"]),
)
def test_every_item_is_answered_once_and_in_its_place(
    schedule: list[Call],
    max_batch: int,
    bulk_batch: int,
    company: int,
    slots: int,
    capacity: int,
    fate: str,
) -> None:
    names = [[(number, place) for place in range(len(call.kinds))] for number, call in enumerate(schedule)]
    kind_of = {
        name: kind
        for named, call in zip(names, schedule, strict=True)
        for name, kind in zip(named, call.kinds, strict=True)
    }
    encoder = Encoder(
        poison=frozenset(name for name, kind in kind_of.items() if kind == "poison"),
        faulty=frozenset(name for name, kind in kind_of.items() if kind == "faulty"),
    )
    ledger = Ledger()
    killed = threading.Event()

    def run(items: Sequence[object]) -> list[object | Exception]:
        if killed.is_set():
            raise WorkerKilled
        return encoder(items)

    async def scenario() -> list[object]:
        batcher: Batcher[object, object] = Batcher(
            run,
            name="under test",
            slots=slots,
            max_batch=max_batch,
            bulk_batch=bulk_batch,
            company=company,
            capacity=capacity,
            observer=ledger,
        )

        async def caller(call: Call, items: list[tuple[int, int]]) -> object:
            await turns(call.wait)
            deadline = None if call.deadline is None else time.monotonic() + call.deadline
            return await batcher.submit(items, lane=call.lane, deadline=deadline)

        async def canceller(task: asyncio.Task[object], call: Call) -> None:
            if call.cancel_after is not None:
                await turns(call.cancel_after)
                task.cancel()

        callers = [asyncio.create_task(caller(*pair)) for pair in zip(schedule, names, strict=True)]
        cancellers = [asyncio.create_task(canceller(*pair)) for pair in zip(callers, schedule, strict=True)]
        async with asyncio.timeout(PROMPTLY):
            await turns(3)
            if fate == "kill":
                killed.set()
            if fate == "close":
                await batcher.close()
            answers = await asyncio.gather(*callers, return_exceptions=True)
            await asyncio.gather(*cancellers)
            await batcher.drain()
            assert batcher.waiting("interactive") == batcher.waiting("bulk") == 0
            await batcher.close()
        return answers

    answers = asyncio.run(scenario())

    for call, items, answer in zip(schedule, names, answers, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert call.cancel_after is not None
        elif isinstance(answer, QueueFullError):
            assert call.lane == "interactive"
        elif isinstance(answer, BatcherStoppedError):
            assert fate in {"close", "kill"}
        else:
            assert len(answer.outcomes) == len(items)
            for name, outcome in zip(items, answer.outcomes, strict=True):
                _check_outcome(name, kind_of[name], outcome, call, fate)
    assert encoder.most_at_once <= slots
    largest = max(max_batch, bulk_batch)
    assert all(1 <= len(batch) <= largest for batch in encoder.batches)
    _check_runs(encoder, kind_of, largest)
    if fate == "drain":
        assert sum(ledger.sizes) == len(encoder.ran)


def _check_outcome(name: object, kind: str, outcome: object, call: Call, fate: str) -> None:
    if isinstance(outcome, BatcherStoppedError):
        assert fate in {"close", "kill"}
    elif isinstance(outcome, DeadlineExceededError):
        assert call.deadline is not None
        assert call.deadline < PROMPTLY
    elif kind == "good":
        assert outcome == ("done", name)
        assert call.deadline is None or call.deadline > 0
    else:
        assert isinstance(outcome, PoisonError)
        assert outcome.args[0] == (name if kind == "faulty" else [name])


def _check_runs(encoder: Encoder, kind_of: dict[object, str], largest: int) -> None:
    """An item runs again only on the way to finding the poison in its batch."""
    halvings = largest.bit_length()
    has_poison = "poison" in kind_of.values()
    assert all(count <= (1 + halvings if has_poison else 1) for count in encoder.ran.values())

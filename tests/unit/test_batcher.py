"""The batcher, one situation at a time; ``test_batcher_property.py`` mixes them all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from service.batcher import Batcher, BatcherStoppedError, DeadlineExceededError, QueueFullError
from tests.encoders import PROMPTLY, Encoder, Ledger, PoisonError, WorkerKilled, done, turns, until

# Batches


async def test_alone_an_item_starts_at_once() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=32)
    waits = [(await batcher.submit([number])).queue_seconds for number in range(50)]
    assert encoder.batches == [[number] for number in range(50)]
    assert sorted(waits)[25] < 0.002
    await batcher.close()


async def test_whatever_arrives_while_a_batch_runs_makes_up_the_next() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=32)
    with encoder.held():
        first = asyncio.create_task(batcher.submit([0]))
        await until(lambda: encoder.batches)
        others = [asyncio.create_task(batcher.submit([number, -number])) for number in range(1, 6)]
        await turns()
        assert batcher.waiting("interactive") == 10
    assert (await first).outcomes == done(0)
    for number, other in enumerate(others, 1):
        assert (await other).outcomes == done(number, -number)
    assert encoder.batches == [[0], [1, -1, 2, -2, 3, -3, 4, -4, 5, -5]]
    await batcher.close()


async def test_while_a_batch_runs_another_starts_for_no_fewer_than_company() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", slots=3, company=3)
    with encoder.held():
        calls = [asyncio.create_task(batcher.submit([0]))]
        await until(lambda: encoder.batches)
        calls += [asyncio.create_task(batcher.submit([number])) for number in (1, 2)]
        await turns()
        assert batcher.waiting("interactive") == 2
        calls.append(asyncio.create_task(batcher.submit([3])))
        await until(lambda: len(encoder.batches) == 2)
        calls.append(asyncio.create_task(batcher.submit([4])))
        await turns()
    for number, call in enumerate(calls):
        assert (await call).outcomes == done(number)
    assert encoder.batches == [[0], [1, 2, 3], [4]]
    await batcher.close()


async def test_callers_of_the_same_turn_share_a_batch() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=32)
    await asyncio.gather(*(batcher.submit([number]) for number in range(20)))
    assert encoder.batches == [list(range(20))]
    await batcher.close()


async def test_first_come_first_served_and_never_more_than_max_batch() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=4)
    await asyncio.gather(batcher.submit(range(6)), batcher.submit(range(6, 9)))
    assert encoder.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    await batcher.close()


@pytest.mark.parametrize("slots", [1, 2, 3])
async def test_every_slot_is_used_and_none_more(slots: int) -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=1, slots=slots)
    with encoder.held():
        work = asyncio.create_task(batcher.submit(range(8)))
        await until(lambda: len(encoder.batches) == slots)
        await asyncio.sleep(0.02)
        assert len(encoder.batches) == slots
    assert (await work).outcomes == done(*range(8))
    assert encoder.most_at_once == slots
    await batcher.close()


async def test_bulk_items_run_only_when_nothing_interactive_waits() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=8, bulk_batch=2)
    with encoder.held():
        bulk = asyncio.create_task(batcher.submit([f"bulk {number}" for number in range(5)], lane="bulk"))
        await until(lambda: encoder.batches)
        interactive = asyncio.create_task(batcher.submit(["a", "b", "c"]))
        await turns()
    await asyncio.gather(bulk, interactive)
    assert encoder.batches == [["bulk 0", "bulk 1"], ["a", "b", "c"], ["bulk 2", "bulk 3"], ["bulk 4"]]
    await batcher.close()


async def test_a_lane_of_dead_items_does_not_hide_the_other() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x")
    with encoder.held():
        running = asyncio.create_task(batcher.submit(["running"]))
        await until(lambda: encoder.batches)
        expired = asyncio.create_task(batcher.submit(["expired"], deadline=time.monotonic()))
        bulk = asyncio.create_task(batcher.submit(["bulk"], lane="bulk"))
        await turns()
    async with asyncio.timeout(PROMPTLY):
        assert (await bulk).outcomes == done("bulk")
        assert isinstance((await expired).outcomes[0], DeadlineExceededError)
        await running
    await batcher.close()


# Failures


async def test_poison_fails_alone() -> None:
    encoder = Encoder(poison=frozenset({5}))
    batcher = Batcher(encoder, name="x", max_batch=16)
    answers = await asyncio.gather(*(batcher.submit([number]) for number in range(16)))
    outcomes = [answer.outcomes[0] for answer in answers]
    assert isinstance(outcomes.pop(5), PoisonError)
    assert outcomes == done(*(number for number in range(16) if number != 5))
    assert encoder.batches[-1] == list(range(8, 16)), "a half without poison is not split"
    await batcher.close()


@pytest.mark.parametrize("given", [[], ["one"], ["one", "two", "three"]])
async def test_a_wrong_number_of_outcomes_is_never_spread_over_the_items(given: list[str]) -> None:
    batcher: Batcher[str, str] = Batcher(lambda items: given, name="x")
    answer = await batcher.submit(["a", "b"])
    for outcome in answer.outcomes:
        assert isinstance(outcome, RuntimeError) or (given == ["one"] and outcome == "one")
    if given != ["one"]:
        assert f"gave {len(given)} outcomes for 1 items" in str(answer.outcomes[0])
    await batcher.close()


async def test_a_full_queue_takes_all_of_a_call_or_nothing() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="image encoder", capacity=3)
    with encoder.held():
        running = asyncio.create_task(batcher.submit([0]))
        await until(lambda: encoder.batches)
        waiting = asyncio.create_task(batcher.submit([1, 2]))
        await turns()
        with pytest.raises(QueueFullError, match="image encoder is full: 2 items wait, the limit is 3"):
            await batcher.submit([3, 4])
        assert batcher.waiting("interactive") == 2
        bulk = asyncio.create_task(batcher.submit(range(10, 20), lane="bulk"))
        await turns()
        last = asyncio.create_task(batcher.submit([5]))
        await turns()
        assert batcher.waiting("interactive") == 3
    for work, items in ((running, [0]), (waiting, [1, 2]), (last, [5]), (bulk, range(10, 20))):
        assert (await work).outcomes == done(*items)
    await batcher.close()


async def test_the_cancelled_give_back_their_places_and_are_never_run() -> None:
    encoder, ledger = Encoder(), Ledger()
    batcher = Batcher(encoder, name="x", capacity=2, observer=ledger)
    with encoder.held():
        running = asyncio.create_task(batcher.submit(["running"]))
        await until(lambda: encoder.batches)
        leaving = asyncio.create_task(batcher.submit(["left", "left too"]))
        await turns()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert batcher.waiting("interactive") == 0
        staying = asyncio.create_task(batcher.submit(["stays", "stays too"]))
        await turns()
    assert (await staying).outcomes == done("stays", "stays too")
    await running
    assert encoder.ran.keys() == {"running", "stays", "stays too"}
    assert ledger.drops == {"cancelled": 2}
    await batcher.close()


async def test_one_who_leaves_while_running_takes_no_one_along() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x")
    with encoder.held():
        leaving = asyncio.create_task(batcher.submit(["left"]))
        staying = asyncio.create_task(batcher.submit(["stays"]))
        await until(lambda: encoder.batches)
        leaving.cancel()
        await turns()
    assert encoder.batches == [["left", "stays"]]
    assert (await staying).outcomes == done("stays")
    await batcher.close()


async def test_the_expired_are_told_and_never_run() -> None:
    encoder, ledger = Encoder(), Ledger()
    batcher = Batcher(encoder, name="x", observer=ledger)
    with encoder.held():
        running = asyncio.create_task(batcher.submit(["running"], deadline=time.monotonic() + 0.01))
        await until(lambda: encoder.batches)
        late = asyncio.create_task(batcher.submit(["late"], deadline=time.monotonic() + 0.01))
        early = asyncio.create_task(batcher.submit(["early"], deadline=time.monotonic() + PROMPTLY))
        await asyncio.sleep(0.03)
    assert (await running).outcomes == done("running"), "what has started is finished"
    assert isinstance((await late).outcomes[0], DeadlineExceededError)
    assert (await early).outcomes == done("early")
    assert encoder.ran.keys() == {"running", "early"}
    assert ledger.drops == {"expired": 1}
    await batcher.close()


async def test_closing_ends_what_runs_and_answers_what_waits() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="the encoder")
    with encoder.held():
        running = asyncio.create_task(batcher.submit(["running"]))
        await until(lambda: encoder.batches)
        waiting = asyncio.create_task(batcher.submit(["waiting"]))
        await turns()
        closing = asyncio.create_task(batcher.close())
        answer = await waiting
        assert isinstance(answer.outcomes[0], BatcherStoppedError)
        assert not closing.done()
        with pytest.raises(BatcherStoppedError, match="the encoder was closed"):
            await batcher.submit(["late"])
    assert (await running).outcomes == done("running")
    await closing
    assert encoder.ran.keys() == {"running"}


async def test_a_dead_worker_leaves_nobody_waiting_and_logs_why(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def run(items: Sequence[str]) -> list[str]:
        assert release.wait(PROMPTLY)
        raise WorkerKilled("by the test")

    batcher: Batcher[str, str] = Batcher(run, name="the encoder")
    running = asyncio.create_task(batcher.submit(["running"]))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(batcher.submit(["waiting"], lane="bulk"))
    await turns()
    assert batcher.failure is None
    release.set()
    async with asyncio.timeout(PROMPTLY):
        for work in (running, waiting):
            assert isinstance((await work).outcomes[0], BatcherStoppedError)
    assert batcher.failure == "the worker of the encoder died"
    assert "by the test" in caplog.text
    with pytest.raises(BatcherStoppedError, match="the worker of the encoder died"):
        await batcher.submit(["late"])
    async with asyncio.timeout(PROMPTLY):
        await batcher.close()


async def test_a_batch_that_cannot_be_started_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    unraised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unraised.append(context))
    batcher = Batcher(Encoder(), name="x")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    async with asyncio.timeout(PROMPTLY):
        answer = await batcher.submit([1, 2])
        assert all(isinstance(outcome, BatcherStoppedError) for outcome in answer.outcomes)
        assert batcher.failure == "the worker of x died"
        await batcher.close()
    assert [str(context["exception"]) for context in unraised] == ["can't start new thread"]


async def test_a_stalled_batch_counts_as_a_dead_worker_until_it_ends() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="the encoder", stall_seconds=0.05)
    with encoder.held():
        work = asyncio.create_task(batcher.submit([1]))
        await until(lambda: encoder.batches)
        assert batcher.failure is None
        await asyncio.sleep(0.08)
        assert batcher.failure == "a batch of the encoder has been running for more than 0.05 s"
    await work
    assert batcher.failure is None
    await batcher.close()


# What it tells


async def test_the_observer_is_told_every_batch() -> None:
    ledger = Ledger()

    def run(items: Sequence[int]) -> list[int]:
        time.sleep(0.01)
        return list(items)

    batcher = Batcher(run, name="x", max_batch=4, observer=ledger)
    await batcher.submit(range(10))
    assert ledger.sizes == [4, 4, 2]
    assert all(0.01 <= seconds < 1 for seconds in ledger.seconds)
    await batcher.close()


async def test_an_answer_tells_where_the_time_went() -> None:
    def run(items: Sequence[int]) -> list[int]:
        time.sleep(0.02)
        return list(items)

    batcher = Batcher(run, name="x", max_batch=1)
    first, second = await asyncio.gather(batcher.submit([1]), batcher.submit([2]))
    assert first.queue_seconds < 0.02 <= second.queue_seconds
    assert 0.02 <= first.run_seconds < 1
    assert 0.02 <= second.run_seconds < 1
    empty = await batcher.submit([])
    assert (empty.outcomes, empty.queue_seconds, empty.run_seconds) == ([], 0.0, 0.0)
    await batcher.close()


async def test_the_expected_wait_grows_with_the_queue() -> None:
    encoder = Encoder()
    batcher = Batcher(encoder, name="x", max_batch=1)
    assert batcher.expected_wait() == 1.0, "nothing is known yet"
    await batcher.submit([0])
    assert batcher.expected_wait() == 0.0
    with encoder.held():
        work = asyncio.create_task(batcher.submit(range(4)))
        await until(lambda: len(encoder.batches) == 2)
        four = batcher.expected_wait()
        more = asyncio.create_task(batcher.submit(range(4, 8)))
        await turns()
        assert batcher.expected_wait() == pytest.approx(2 * four)
        assert four > 0
    await asyncio.gather(work, more)
    await batcher.close()

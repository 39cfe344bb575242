"""Fronts and the queues they share, over real sockets and real shared memory, on one event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions
from service.batcher import DeadlineExceededError, QueueFullError
from service.host import LocalHost
from service.metrics import Metrics
from service.served import BatchOptions, LocalModel, NonFiniteFeaturesError, ServedModel, _check_finite
from service.shared import messages
from service.shared.connection import EngineLostError
from service.shared.front import FrontHost
from service.shared.fronts import Fronts
from service.shared.messages import EncoderFailedError
from service.shared.pixels import PixelBlock
from tests.apps import until
from tests.toy_models import SIZE, write_toy_model

OPTIONS = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1)
CAPACITY = 4


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


class Held:
    """An encoder that answers only while it is open, and notes the sizes of its batches."""

    def __init__(self, served: ServedModel, encoder: str = "image") -> None:
        self.queue: Any = served.queues[encoder]
        self._run, self.queue._run = self.queue._run, self._wait
        self.open = threading.Event()
        self.sizes: list[int] = []

    def _wait(self, items: Sequence[Any]) -> Any:
        self.sizes.append(len(items))
        assert self.open.wait(10)
        return self._run(items)


@dataclass
class Workplace:
    """Where an engine process and its fronts meet."""

    folder: Path
    bell: socket.socket
    door: socket.socket
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry(self.folder, options=OPTIONS)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[LocalModel]:
        """What an engine process does, until the block ends."""
        host, fronts = LocalHost(self.registry, BatchOptions(), Metrics()), Fronts()
        served = await host.open("toy")
        fronts.add(served)
        fronts.listen(self.door)
        try:
            yield served
        finally:
            asyncio.get_running_loop().remove_reader(self.door)
            fronts.close()
            await served.close()

    async def front(self, **given: Any) -> tuple[FrontHost, ServedModel]:
        host = FrontHost(self.registry, bell=self.bell, names=("toy",), **{"capacity": CAPACITY} | given)
        self.stack.push_async_callback(host.close)
        return host, await host.open("toy")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workplace]:
    write_toy_model(tmp_path)
    bell, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bell, door:
        place = Workplace(tmp_path, bell, door)
        async with place.stack:
            yield place


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def submitted(*work: Any) -> Iterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


async def test_features_are_those_of_one_process(place: Workplace) -> None:
    async with place.engine() as served:
        _, front = await place.front(capacity=64)
        pictures = [picture(seed) for seed in range(40)]
        texts = [one.ids for one in front.model.tokenizer([f"text {'long ' * n}" for n in range(40)])]
        seen = await asyncio.gather(front.images.submit(pictures), front.texts.submit(texts))
        alone = await asyncio.gather(served.images.submit(pictures), served.texts.submit(texts))
        for one, other in zip(seen, alone, strict=True):
            np.testing.assert_array_equal(np.stack(one.outcomes), np.stack(other.outcomes))
        assert front.describe() == served.describe()


async def test_items_of_all_fronts_share_batches(place: Workplace) -> None:
    async with place.engine() as served:
        fronts = [(await place.front())[1] for _ in range(3)]
        held = Held(served)
        with submitted(fronts[0].images.submit([picture()])) as (first,):
            await until(lambda: held.sizes)
            with submitted(*(front.images.submit([picture(1)]) for front in fronts)) as rest:
                await until(lambda: served.images.waiting("interactive") == 3)
                held.open.set()
                assert [(await one).batch_size for one in rest] == [3, 3, 3]
            assert (await first).batch_size == 1
        assert held.sizes == [1, 3]


async def test_who_goes_away_leaves_the_queue_and_its_slots(place: Workplace) -> None:
    async with place.engine() as served:
        _, front = await place.front()
        held = Held(served)
        with submitted(front.images.submit([picture()])) as (running,):
            await until(lambda: held.sizes)
            for _ in range(5 * CAPACITY):
                with submitted(front.images.submit([picture()] * (CAPACITY - 1))):
                    await until(lambda: served.images.waiting("interactive") == CAPACITY - 1)
                await until(lambda: not served.images.waiting("interactive"))
            held.open.set()
            await running
        assert held.sizes == [1]
        assert (await front.images.submit([picture()] * CAPACITY)).batch_size == CAPACITY


async def test_a_front_that_hangs_up_takes_its_items_along(place: Workplace) -> None:
    async with place.engine() as served:
        (host, leaving), (_, staying) = await place.front(), await place.front()
        held = Held(served)
        running = asyncio.ensure_future(leaving.images.submit([picture()]))
        await until(lambda: held.sizes)
        with submitted(running, leaving.images.submit([picture()] * (CAPACITY - 1))) as tasks:
            await until(lambda: served.images.waiting("interactive") == CAPACITY - 1)
            with submitted(staying.images.submit([picture(1)])) as (kept,):
                await until(lambda: served.images.waiting("interactive") == CAPACITY)
                await host.close()
                await until(lambda: served.images.waiting("interactive") == 1)
                held.open.set()
                (features,) = (await kept).outcomes
            lost = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in lost} == {EngineLostError}
        (alone,) = (await served.images.submit([picture(1)])).outcomes
        np.testing.assert_allclose(features, alone, atol=1e-6)


async def test_the_memory_of_a_front_goes_with_it(place: Workplace) -> None:
    """At once: garbage is collected seldom in a process that hardly makes any."""

    def times_mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f" {file.st_ino} ")

    async with place.engine() as served:
        host, front = await place.front()
        assert host._block is not None
        file = os.fstat(host._block.descriptor)
        held = Held(served)
        with without_garbage_collection(), submitted(front.images.submit([picture()] * 2)):
            await until(lambda: held.sizes)
            assert times_mapped() == 2, "by the front and by the engine process"
            await host.close()
            held.open.set()
            await until(lambda: times_mapped() == 1)


async def test_more_than_a_front_may_hold_is_refused_and_nothing_of_it_kept(place: Workplace) -> None:
    async with place.engine() as served:
        (_, full), (_, other) = await place.front(), await place.front()
        held = Held(served)
        with submitted(full.images.submit([picture()] * 3)) as (working,):
            await until(lambda: held.sizes)
            with pytest.raises(QueueFullError, match="limit of 4"):
                await full.images.submit([picture()] * 2)
            with submitted(full.images.submit([picture()]), other.images.submit([picture()] * 4)) as more:
                await until(lambda: served.images.waiting("interactive") == 5)
                held.open.set()
                await asyncio.gather(working, *more)
        texts = [np.arange(3)] * (CAPACITY + served.in_flight["text"] + 1)
        with pytest.raises(QueueFullError, match="text encoder of toy"):
            await full.texts.submit(texts)
        assert len((await full.texts.submit(texts[1:])).outcomes) == len(texts) - 1
        assert len((await full.texts.submit(texts, lane="bulk")).outcomes) == len(texts), "which has no limit"


async def test_errors_arrive_as_they_were(place: Workplace) -> None:
    async with place.engine() as served:
        _, front = await place.front()

        def run(items: Sequence[np.ndarray]) -> Any:
            if any(item[0, 0, 0] == 66 for item in items):
                raise ZeroDivisionError("of the encoder")
            features = np.ones((len(items), 48), np.float32)
            features[[item[0, 0, 0] == 77 for item in items], 5] = np.inf
            return _check_finite(features)

        queue: Any = served.images
        queue._run = run
        good, bad, endless = (np.full((SIZE, SIZE, 3), value, np.uint8) for value in (1, 66, 77))
        first, failed, infinite, last = (await front.images.submit([good, bad, endless, good])).outcomes
        np.testing.assert_array_equal(first, np.ones(48))
        np.testing.assert_array_equal(last, np.ones(48))
        assert isinstance(infinite, NonFiniteFeaturesError)
        assert isinstance(failed, EncoderFailedError)
        assert str(failed) == "ZeroDivisionError: of the encoder"
        assert "in run" in failed.__notes__[0], "the traceback is there for the log"
        past = time.monotonic() - 1
        (expired,) = (await front.images.submit([good], deadline=past)).outcomes
        assert isinstance(expired, DeadlineExceededError)


async def test_bulk_runs_only_when_nothing_else_waits(place: Workplace) -> None:
    async with place.engine() as served:
        _, front = await place.front()
        held = Held(served, "text")
        tokens = [np.array([1, 40 + n, 2]) for n in range(6)]
        with submitted(front.texts.submit(tokens[:1])) as (first,):
            await until(lambda: held.sizes)
            with submitted(front.texts.submit(tokens[1:4], lane="bulk")) as (bulk,):
                await until(lambda: served.texts.waiting("bulk") == 3)
                with submitted(front.texts.submit(tokens[4:])) as (urgent,):
                    await until(lambda: served.texts.waiting("interactive") == 2)
                    held.open.set()
                    await asyncio.gather(first, bulk, urgent)
        assert held.sizes == [1, 2, 3]


async def test_an_engine_process_that_ends_is_told_and_the_next_one_is_found(place: Workplace) -> None:
    async with place.engine() as served:
        host, front = await place.front()
        held = Held(served)
        waiting = asyncio.ensure_future(front.images.submit([picture()]))
        building = asyncio.ensure_future(front.texts.submit([np.arange(3)], lane="bulk"))
        await until(lambda: held.sizes)
        assert host.reachable
        asyncio.get_running_loop().call_later(0.2, held.open.set)
    with pytest.raises(EngineLostError, match="another one is being started"):
        await waiting
    assert not host.reachable
    with pytest.raises(EngineLostError):
        await front.images.submit([picture()])
    async with place.engine():
        await until(lambda: host.reachable)
        assert len((await front.images.submit([picture()] * CAPACITY)).outcomes) == CAPACITY
        assert len((await building).outcomes) == 1


async def test_bulk_work_waits_for_the_next_engine_process(place: Workplace) -> None:
    async with place.engine() as served:
        host, front = await place.front()
        held = Held(served, "text")
        building = asyncio.ensure_future(front.texts.submit([np.arange(3)], lane="bulk"))
        await until(lambda: held.sizes)
        asyncio.get_running_loop().call_later(0.1, held.open.set)
    await until(lambda: not host.reachable)
    assert not building.done()
    async with place.engine():
        assert len((await building).outcomes) == 1


async def test_bulk_work_handed_in_while_the_connection_breaks_waits_too(place: Workplace) -> None:
    async with place.engine():
        host, front = await place.front()
        connection = await host.connection()
        fail, building = connection._fail, []

        def submit_and_fail() -> None:  # the submission has its turn before whoever mends the connection
            building.append(asyncio.ensure_future(front.texts.submit([np.arange(3)], lane="bulk")))
            fail()

        connection._frames._lost = submit_and_fail
        connection.close()
        await until(lambda: building)
        assert len((await building[0]).outcomes) == 1


async def test_a_front_gives_up_when_the_files_have_changed(place: Workplace) -> None:
    async with place.engine():
        host, front = await place.front()
        assert front.images.failure is None
    for file in (place.folder / "toy").iterdir():
        file.unlink()
    (place.folder / "toy").rmdir()
    write_toy_model(place.folder, seed=7)
    async with place.engine():
        await until(lambda: host.reachable)
        assert front.images.failure == "the files of toy have changed since this process read them"


@pytest.mark.parametrize("complete", [True, False], ids=["wrong size", "nothing"])
async def test_who_brings_no_memory_that_can_be_used_is_not_kept_waiting(
    place: Workplace, complete: bool
) -> None:
    async with place.engine():
        block = PixelBlock.create(slots=2, slot_bytes=8)
        here, there = socket.socketpair()
        files = [there.fileno(), block.descriptor][: 1 + complete]
        socket.send_fds(place.bell, [messages.pack_ring(slots=3, slot_bytes=8)], files)
        there.close()
        block.close()
        reader, writer = await asyncio.open_unix_connection(sock=here)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        _, front = await place.front()
        assert len((await front.images.submit([picture()])).outcomes) == 1


async def test_nonsense_ends_the_connection_it_came_from_alone(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.engine():
        (wrong, first), (_, second) = await place.front(), await place.front()
        slots = messages.pack_slots([CAPACITY])
        submission = messages.Submission(queue=0, lane="interactive", deadline=None, count=1, items=slots)
        for kind, body in ((3, b"short"), (99, b""), (2, b"".join(messages.pack_submission(0, submission)))):
            connection = await wrong.connection()
            connection._frames.send(kind, body)
            await asyncio.wait_for(connection.lost.wait(), 5)
            assert "given up" in caplog.text
            caplog.clear()
            await until(lambda: wrong.reachable)
            for front in (first, second):
                assert len((await front.images.submit([picture()])).outcomes) == 1

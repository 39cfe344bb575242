"""The engine process's side: every front, and the queues that they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.batcher import BatcherError
from service.served import EncoderQueue, LocalModel
from service.shared import messages
from service.shared.frames import Frames, MalformedMessageError
from service.shared.messages import Answered, Kind, ModelFacts, QueueFacts, Submission
from service.shared.pixels import PixelBlock

_LOG = logging.getLogger("clipserve.shared")


@dataclass(frozen=True, kw_only=True)
class _Queue:
    """A queue, and the size of the pictures it takes; None: it takes texts."""

    items: EncoderQueue
    picture_size: int | None = None


class Fronts:
    """Takes what fronts submit to the queues of models. Lives on one event loop."""

    def __init__(self) -> None:
        self._models: dict[str, ModelFacts] = {}
        self._queues: list[_Queue] = []
        self._fronts: set[_Front] = set()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._deserted = asyncio.Event()
        self._deserted.set()

    def add(self, served: LocalModel) -> None:
        """Have a model encode for fronts, which are told so when they come."""
        facts = {}
        for encoder, queue in served.queues.items():
            size = served.model.manifest.image.size if encoder == "image" else None
            facts[encoder] = QueueFacts(number=len(self._queues), in_flight=served.in_flight[encoder])
            self._queues.append(_Queue(items=queue, picture_size=size))
        self._models[served.name] = ModelFacts(digest=served.digest, running=served.running(), queues=facts)

    def listen(self, door: socket.socket) -> None:
        """Work for every front that has rung, or will, until it hangs up."""
        door.setblocking(False)
        asyncio.get_running_loop().add_reader(door, self._open, door)

    def failures(self) -> list[str]:
        """Why queues count as dead; empty while all are well."""
        return [failure for queue in self._queues if (failure := queue.items.failure)]

    async def deserted(self, *, seconds: float) -> None:
        """Wait until every front has hung up, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deserted.wait(), seconds)

    def close(self) -> None:
        """Hang up on whoever is still there."""
        for front in self._fronts:
            front.frames.close()

    def _open(self, door: socket.socket) -> None:
        """Someone has left one end of a connection and some shared memory at the door.

        Who cannot be let in finds that the connection ends, and may ring again.
        """
        with contextlib.suppress(BlockingIOError):
            ring, descriptors, *_ = socket.recv_fds(door, 64, 2)
            if len(descriptors) < 2:  # too many files are open here
                for one in descriptors:
                    os.close(one)
                return
            connection = socket.socket(fileno=descriptors[0])
            try:
                slots, slot_bytes = messages.unpack_ring(ring)
                block = PixelBlock.of_another(descriptors[1], slots=slots, slot_bytes=slot_bytes)
            except (OSError, MalformedMessageError):
                _LOG.exception("the memory of a front cannot be used")
                connection.close()
                return
            work = self._welcome(connection, block)
            self._welcomes.add(task := asyncio.get_running_loop().create_task(work))
            task.add_done_callback(self._welcomes.discard)

    async def _welcome(self, connection: socket.socket, block: PixelBlock) -> None:
        front = _Front(self._queues, block, self._forget)
        self._fronts.add(front)
        self._deserted.clear()
        connection.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: front.frames, sock=connection)
        front.frames.send(Kind.GREETING, messages.pack_greeting(self._models))

    def _forget(self, front: _Front) -> None:
        self._fronts.discard(front)
        if not self._fronts:
            self._deserted.set()


class _Front:
    """One front's connection. When it hangs up, what it has in the queues leaves them."""

    def __init__(self, queues: Sequence[_Queue], block: PixelBlock, forget: Callable[[_Front], None]) -> None:
        self.frames = Frames(received=self._received, lost=self._lost)
        self._queues = queues
        self._block = block
        self._forget = forget
        self._calls: dict[int, asyncio.Task[None]] = {}

    def _received(self, kind: int, body: bytes) -> None:
        match kind:
            case Kind.SUBMISSION:
                call, submission = messages.unpack_submission(body)
                queue = self._queues[submission.queue]
                work = self._answer(call, submission, queue.items, self._items(submission, queue))
                self._calls[call] = asyncio.get_running_loop().create_task(work)
                self._calls[call].add_done_callback(lambda _: self._calls.pop(call, None))
            case Kind.CANCELLATION:
                call = messages.unpack_cancellation(body)
                if (task := self._calls.get(call)) is not None:
                    task.cancel()
            case _:
                raise MalformedMessageError(f"a message of kind {kind}")

    def _items(self, submission: Submission, queue: _Queue) -> Sequence[Any]:
        if queue.picture_size is None:
            return messages.unpack_tokens(submission.items, submission.count)
        look = partial(self._block.picture, size=queue.picture_size)
        return [look(slot) for slot in messages.unpack_slots(submission.items, submission.count)]

    async def _answer(
        self, call: int, submission: Submission, queue: EncoderQueue, items: Sequence[Any]
    ) -> None:
        try:
            answer = await queue.submit(items, lane=submission.lane, deadline=submission.deadline)
        except Exception as error:
            if not isinstance(error, BatcherError):
                _LOG.exception("a submission failed")
            self.frames.send(Kind.REFUSAL, messages.pack_refusal(call, error))
        else:
            answered = Answered(answer=answer, expected_wait=queue.expected_wait())
            self.frames.send(Kind.ANSWER, *messages.pack_answer(call, answered))

    def _lost(self) -> None:
        for task in self._calls.values():
            task.cancel()
        del self._block  # it would wait for the garbage collector: this and its frames hold each other
        self._forget(self)

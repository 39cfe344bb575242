"""A front's connection to the engine process."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

from service.batcher import BatcherStoppedError
from service.shared import messages
from service.shared.frames import Frames, MalformedMessageError
from service.shared.messages import Answered, Kind, ModelFacts, Submission


class EngineLostError(BatcherStoppedError):
    """There is no engine process now."""

    def __init__(self) -> None:
        super().__init__("the engine process has ended; another one is being started")


class Connection:
    """One connection, until it breaks. ``models``: what the engine process serves, once it has greeted.

    ``forget`` is called when it breaks, before anyone who waits for an answer is told.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self._forget = forget
        self._frames = Frames(received=self._received, lost=self._fail)
        self.models: dict[str, ModelFacts] = {}
        self.lost = asyncio.Event()
        self._greeted = asyncio.Event()
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answered]] = {}

    async def open(self, end: socket.socket) -> None:
        """Talk through one end of a pair of sockets, of which the engine process will have the other."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self._frames, sock=end)

    def close(self) -> None:
        """Hang up."""
        self._frames.close()

    async def greeted(self) -> bool:
        """Wait until the engine process greets; false if it is lost before that."""
        await self._greeted.wait()
        return not self.lost.is_set()

    async def ask(self, submission: Submission) -> Answered:
        """Have items encoded. If the caller is cancelled, what has not started leaves its queue.

        Raises:
            EngineLostError: the engine process ends before the answer.
            BatcherError: the queue does not take them.
        """
        if self.lost.is_set():
            raise EngineLostError
        call = next(self._numbers)
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._calls[call] = future
        self._frames.send(Kind.SUBMISSION, *messages.pack_submission(call, submission))
        try:
            return await future
        except asyncio.CancelledError:
            self._frames.send(Kind.CANCELLATION, messages.pack_cancellation(call))
            raise
        finally:
            del self._calls[call]

    def _received(self, kind: int, body: bytes) -> None:
        match kind:
            case Kind.GREETING:
                self.models = messages.unpack_greeting(body)
                self._greeted.set()
            case Kind.ANSWER:
                call, answered = messages.unpack_answer(body)
                if (future := self._waiting(call)) is not None:
                    future.set_result(answered)
            case Kind.REFUSAL:
                call, error = messages.unpack_refusal(body)
                if (future := self._waiting(call)) is not None:
                    future.set_exception(error)
            case _:
                raise MalformedMessageError(f"a message of kind {kind}")

    def _waiting(self, call: int) -> asyncio.Future[Answered] | None:
        """Whoever waits for a call; nobody where it was cancelled while the answer was on its way."""
        future = self._calls.get(call)
        return None if future is None or future.done() else future

    def _fail(self) -> None:
        self._forget()
        self.lost.set()
        self._greeted.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineLostError())

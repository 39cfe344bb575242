"""The front's side: models whose encoders run in the engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from models.errors import ManifestError
from models.registry import Model, ModelRegistry
from service.served import ServedModel
from service.shared import messages
from service.shared.connection import Connection, EngineLostError
from service.shared.messages import ModelFacts
from service.shared.pixels import PixelBlock
from service.shared.queue import RemoteQueue

_LOG = logging.getLogger("clipserve")
_RETRY_SECONDS = 0.05


class FrontHost:
    """Opens models without their graphs, and keeps a connection to the engine process. Meets ``ModelHost``.

    ``names``: the models that will be opened. ``capacity``: pictures that may be worked on at once; so many
    slots the shared memory has. ``failure``: why this front cannot go on, or None.
    """

    def __init__(
        self, registry: ModelRegistry, *, bell: socket.socket, names: Sequence[str], capacity: int
    ) -> None:
        self.capacity = capacity
        self.failure: str | None = None
        self._registry = registry
        self._bell = bell
        self._names = names
        self._served: list[FrontModel] = []
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._block: PixelBlock | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def reachable(self) -> bool:
        """Whether there is an engine process."""
        return self._connection is not None

    async def open(self, name: str, *, again: bool = False) -> ServedModel:  # noqa: ARG002 (it never is)
        """Read what a front needs of a model, once the engine process has loaded it.

        Raises:
            ManifestError: the engine process has loaded other files; and what ``without_graphs`` raises.
        """
        model = await asyncio.to_thread(self._registry.without_graphs, name)
        if self._block is None:
            self._block = await asyncio.to_thread(self._make_block)
            self._keeping = asyncio.create_task(self._keep_connected(self._block))
        facts = (await self.connection()).models[name]
        served = FrontModel(model, self, self._block, facts)
        if not served.runs_as(facts):
            raise ManifestError(f"{name}: its files have changed since the engine process loaded them")
        self._served.append(served)
        return served

    def connection_now(self) -> Connection:
        """The connection.

        Raises:
            EngineLostError: there is none.
        """
        if self._connection is None:
            raise EngineLostError
        return self._connection

    async def connection(self) -> Connection:
        """The connection, as soon as there is one."""
        while self._connection is None:
            await self._connected.wait()
        return self._connection

    async def close(self) -> None:
        """Hang up, which ends what the engine process still does for this front."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._block is not None:
            self._block.close()
            self._block = None

    def _make_block(self) -> PixelBlock:
        largest = max(self._registry.manifest(name).image.size for name in self._names)
        return PixelBlock.create(slots=self.capacity, slot_bytes=3 * largest * largest)

    async def _keep_connected(self, block: PixelBlock) -> None:
        while True:
            connection = Connection(self._forget)
            await connection.open(await self._ring(block))
            try:
                if await connection.greeted():
                    self._meet(connection)
                    await connection.lost.wait()
                    _LOG.error("the engine process is gone: what needs it gets 503 until there is another")
                else:
                    await asyncio.sleep(_RETRY_SECONDS)
            finally:
                self._forget()
                connection.close()

    def _meet(self, connection: Connection) -> None:
        for served in self._served:
            if not served.runs_as(connection.models[served.name]):
                self.failure = f"the files of {served.name} have changed since this process read them"
        self._connection = connection
        self._connected.set()

    def _forget(self) -> None:
        self._connection = None
        self._connected.clear()

    async def _ring(self, block: PixelBlock) -> socket.socket:
        """Leave the shared memory and one end of a new connection at the engine process's door.

        They wait there until it is ready. So nothing has a path or a name that anyone else could open.
        """
        ring = messages.pack_ring(slots=block.slots, slot_bytes=block.slot_bytes)
        self._bell.setblocking(False)
        while True:
            try:
                here, there = socket.socketpair()
                with there:
                    try:
                        socket.send_fds(self._bell, [ring], [there.fileno(), block.descriptor])
                    except OSError:
                        here.close()
                        raise
            except OSError:  # too many wait at the door, or too many files are open
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return here


class FrontModel(ServedModel):
    """A model whose encoders run in the engine process, which also lets metrics tell of it."""

    def __init__(self, model: Model, host: FrontHost, block: PixelBlock, facts: ModelFacts) -> None:
        @contextlib.contextmanager
        def carry_pictures(pictures: Sequence[Any]) -> Iterator[bytes]:
            with block.holding(pictures) as slots:
                yield messages.pack_slots(slots)

        def carry_tokens(tokens: Sequence[Any]) -> AbstractContextManager[bytes]:
            return contextlib.nullcontext(messages.pack_tokens(tokens))

        self._facts = facts
        images, texts = (
            RemoteQueue(host, model=model.name, encoder=encoder, capacity=host.capacity, carry=carry)
            for encoder, carry in (("image", carry_pictures), ("text", carry_tokens))
        )
        super().__init__(model, images=images, texts=texts)

    def runs_as(self, facts: ModelFacts) -> bool:
        """Take what an engine process tells of the model; whether both have the same files."""
        self._facts = facts
        return facts.digest == self.digest

    def running(self) -> dict[str, Any]:
        """See ``LoadedModel.running``; of the last engine process there was."""
        return self._facts.running

    def show(self) -> None:
        """Done in the engine process."""

    def hide(self) -> None:
        """Done in the engine process."""

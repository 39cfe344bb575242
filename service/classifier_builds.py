"""One classifier from labels to the store: its turn among servers, its encoding, its checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prompts.errors import StoreError, StoreUnavailableError, SupersededError
from prompts.store import ClassifierStore, Lease, StoredClassifier
from service.batcher import Lane
from service.class_builder import LABELS_A_ROUND, split
from service.engine import Engine
from service.served import Features

_CHECKPOINT_ROUNDS = 16
_LEASE_SECONDS = 0.1  # between two attempts
_RENEW_SECONDS = 3.0
_RETRY_SECONDS = 1.0


@dataclass
class Build:
    """One classifier on its way: what it is made of, and how far it has come.

    ``stored`` has its matrix once it is whole, be it written or not. A patient build has nobody waiting
    for its answer: it outlasts a store that cannot be reached.
    """

    stored: StoredClassifier
    patient: bool
    done: int = 0
    lease: Lease | None = None
    task: asyncio.Task[None] | None = None
    error: Exception | None = None

    @property
    def state(self) -> Literal["building", "failed"]:
        """For ``GET /classifiers/{name}``."""
        return "failed" if self.error else "building"


@dataclass(frozen=True)
class ClassifierBuilder:
    """Runs builds. Of several servers with one store, one does the work and the others wait for it."""

    engine: Engine
    store: ClassifierStore

    def same_in_store(self, wanted: StoredClassifier) -> StoredClassifier | None:
        """What the store has under this name, if it is whole and made of the same."""
        if wanted.name not in self.store.names():
            return None
        there = self.store.get(wanted.name)
        return there if there.matrix is not None and there.content == wanted.content else None

    async def ticket_or_none(self) -> int:
        """A ticket, or 0 where the store cannot be reached: such a build takes it before it is written."""
        try:
            return await asyncio.to_thread(self.store.ticket)
        except StoreUnavailableError:
            return 0

    async def announce(self, build: Build) -> None:
        """Let other servers see that it has begun, and a start after a stop go on with it.

        Where another server has announced the same, its announcement stands.

        Raises:
            SupersededError: another of its name has been accepted since its ticket was given out.
            StoreError: it cannot be written.
        """
        build.lease = await asyncio.to_thread(self.store.lease, build.stored)
        if build.lease is None:
            return
        known = await self._known(build)
        partial = replace(build.stored, matrix=known[0] if known else None)
        await asyncio.to_thread(self.store.put_partial, partial)

    async def run(self, build: Build) -> None:
        """Build what no other server builds, and write it.

        Raises:
            SupersededError: another of its name has been accepted since its ticket was given out.
            UnknownModelError: its model is not loaded.
        """
        served = self.engine.model(build.stored.model)
        if build.stored.model_digest != served.digest:
            build.stored = replace(build.stored, model_digest=served.digest, matrix=None)
        async with self._turn(build):
            there = self.same_in_store(build.stored)
            if there is None or there.ticket < build.stored.ticket:
                build.stored = await self._complete(build)
                await self._keep(build)

    @asynccontextmanager
    async def _turn(self, build: Build) -> AsyncIterator[None]:
        """Wait until no other server builds the same, and see to it that none begins."""
        lease = build.lease or await self._lease(build)
        renewing = asyncio.create_task(_renew(lease)) if lease is not None else None
        try:
            yield
        finally:
            if lease is not None and renewing is not None:
                renewing.cancel()
                with contextlib.suppress(StoreError):  # it expires by itself
                    await asyncio.to_thread(lease.release)

    async def _lease(self, build: Build) -> Lease | None:
        """None if the store cannot be reached: then everyone builds on its own."""
        try:
            while (lease := await asyncio.to_thread(self.store.lease, build.stored)) is None:
                await asyncio.sleep(_LEASE_SECONDS)
                await asyncio.to_thread(self.store.refresh)
                if self.store.superseded(build.stored):
                    raise SupersededError(f"{build.stored.name!r}: was stored anew meanwhile")
                if (progress := self.store.progress(build.stored.name)) is not None:
                    build.done = progress.done
            await asyncio.to_thread(self.store.refresh)
        except StoreUnavailableError:
            if not build.patient:
                raise
            return None
        return lease

    async def _complete(self, build: Build) -> StoredClassifier:
        """Encode what is missing, a round of labels at a time; from time to time write a checkpoint."""
        stored = replace(build.stored, matrix=None)
        served = self.engine.model(stored.model)
        matrices = await self._known(build)
        build.done = sum(map(len, matrices))
        labels, template_set = stored.labels, stored.template_set
        large = self.engine.classes.is_large(labels, template_set)
        lane: Lane = "bulk" if large else "interactive"
        with served.use():
            for count, some in enumerate(split(labels[build.done :], LABELS_A_ROUND)):
                if large and count and count % _CHECKPOINT_ROUNDS == 0:
                    matrices = [np.concatenate(matrices)]
                    await self._checkpoint(replace(stored, matrix=matrices[0]))
                matrices.append(await self.engine.classes.some_rows(served, some, template_set, lane=lane))
                build.done += len(some)
        return replace(stored, matrix=np.concatenate(matrices))

    async def _known(self, build: Build) -> list[Features]:
        """The rows that need not be encoded: of one that is made of the same, or of a checkpoint."""
        stored = build.stored
        known = [stored, self.same_in_store(stored)]
        if stored.name in self.store.partial_names():
            with contextlib.suppress(StoreUnavailableError):
                known.append(await asyncio.to_thread(self.store.get_partial, stored.name))
        same = [one for one in known if one is not None and one.content == stored.content]
        best = max(same, key=lambda one: one.done)
        return [] if best.matrix is None else [best.matrix]

    async def _checkpoint(self, partial: StoredClassifier) -> None:
        with contextlib.suppress(StoreUnavailableError):  # only work is lost
            await asyncio.to_thread(self.store.put_partial, partial)

    async def _keep(self, build: Build) -> None:
        while True:
            try:
                if not build.stored.ticket:
                    await asyncio.to_thread(self.store.refresh)
                    if self.same_in_store(build.stored) is not None:
                        return
                    build.stored = replace(build.stored, ticket=await asyncio.to_thread(self.store.ticket))
                await asyncio.to_thread(self.store.put, build.stored)
            except StoreUnavailableError:
                if not build.patient:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return


async def _renew(lease: Lease) -> None:
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(lease.renew)

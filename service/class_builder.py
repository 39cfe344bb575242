"""Class embeddings on the server: from labels to a matrix, through two caches and the text encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from models.manifest import Activation
from models.registry import Model
from prompts.cache import EmbeddingCache, EventListener, class_key, matrix_key
from prompts.classifier import ZeroShotClassifier
from prompts.ensemble import PromptPlan
from prompts.labels import Label
from prompts.templates import TemplateSet
from service.batcher import Lane
from service.metrics import Metrics
from service.served import Features, ServedModel

T = TypeVar("T")
LABELS_A_ROUND = 64


class EncodeTexts(Protocol):
    """``Engine.encode_prompts``."""

    def __call__(self, served: ServedModel, texts: Sequence[str], *, lane: Lane) -> Awaitable[Features]:
        """Texts → features (N, D)."""
        ...


class SharedEmbeddings(Protocol):
    """Class embeddings that servers share. May block briefly; never raises."""

    def get_many(self, keys: Sequence[bytes], *, dim: int) -> list[Features | None]:
        """The row (D,) of each key, or None."""
        ...

    def put_many(self, keys: Sequence[bytes], rows: Features) -> None:
        """Keep row i of (N, D) under ``keys[i]``."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(eq=False)
class _Build:
    """A matrix that is being made, and how many callers wait for it."""

    task: asyncio.Task[Features]
    callers: int = 0


class ClassBuilder:
    """Builds class matrices. What was encoded for one list of labels is not encoded for another.

    ``background_prompts``: a list with more prompts than this is encoded in the bulk lane. ``shared``:
    what other servers have encoded, asked for what the cache does not know.
    """

    def __init__(
        self,
        encode_texts: EncodeTexts,
        metrics: Metrics,
        *,
        class_cache_bytes: int,
        matrix_cache_bytes: int,
        background_prompts: int,
        shared: SharedEmbeddings | None = None,
    ) -> None:
        self._encode_texts = encode_texts
        self._classes = _cache("class", class_cache_bytes, metrics)
        self._matrices = _cache("matrix", matrix_cache_bytes, metrics)
        self._background_prompts = background_prompts
        self._shared = shared
        self._note_shared = _noting("shared", metrics)
        self._sharing: set[asyncio.Task[None]] = set()
        self._building: dict[bytes, _Build] = {}

    async def matrix(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet
    ) -> Features:
        """Class embeddings (C, D), from the caches where possible.

        Callers that ask for the same list at the same time share one piece of work. It ends when the last
        of them leaves, as nobody else bounds how many there are; the next one to ask finds in the cache
        what was done.
        """
        key = matrix_key(served.digest, template_set, labels)
        if (matrix := self._matrices.get(key)) is not None:
            return matrix
        build = self._building.get(key)
        if build is None:
            build = _Build(asyncio.create_task(self._build(served, labels, template_set)))
            self._building[key] = build
            build.task.add_done_callback(partial(self._keep, key, build))
        build.callers += 1
        try:
            return await asyncio.shield(build.task)
        finally:
            build.callers -= 1
            if not build.callers:
                self._forget(key, build)
                build.task.cancel()

    async def some_rows(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet, *, lane: Lane
    ) -> Features:
        """Class embeddings (C, D) of a few labels; those the cache knows are not encoded."""
        keys = [class_key(served.digest, template_set, label) for label in labels]
        rows = self._classes.get_many(keys)
        if self._shared is not None and any(row is None for row in rows):
            await self._fill(self._shared, keys, rows, served.model.manifest.embedding_dim)
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            plan = PromptPlan.of([labels[index] for index in missing], template_set)
            fresh = plan.embed(await self._encode_texts(served, plan.texts, lane=lane))
            for index, row in zip(missing, fresh, strict=True):
                rows[index] = row
                self._classes.put(keys[index], row)
            self._share([keys[index] for index in missing], fresh)
        return np.stack([row for row in rows if row is not None])

    def is_large(self, labels: Sequence[Label], template_set: TemplateSet) -> bool:
        """Whether a list has more prompts than a caller should wait for."""
        return count_prompts(labels, template_set) > self._background_prompts

    async def close(self) -> None:
        """Stop building."""
        tasks = [*(build.task for build in self._building.values()), *self._sharing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._shared is not None:
            self._shared.close()

    async def _fill(
        self, shared: SharedEmbeddings, keys: Sequence[bytes], rows: list[Features | None], dim: int
    ) -> None:
        """Put what other servers know where ``rows`` has None."""
        missing = [index for index, row in enumerate(rows) if row is None]
        found = await asyncio.to_thread(shared.get_many, [keys[index] for index in missing], dim=dim)
        known = [(index, row) for index, row in zip(missing, found, strict=True) if row is not None]
        for index, row in known:
            rows[index] = row
            self._classes.put(keys[index], row)
        self._note_shared("hit", len(known))
        self._note_shared("miss", len(missing) - len(known))

    def _share(self, keys: Sequence[bytes], rows: Features) -> None:
        """Tell other servers, while the caller goes on."""
        if self._shared is not None:
            task = asyncio.create_task(asyncio.to_thread(self._shared.put_many, keys, rows))
            self._sharing.add(task)
            task.add_done_callback(self._sharing.discard)

    async def _build(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet
    ) -> Features:
        lane: Lane = "bulk" if self.is_large(labels, template_set) else "interactive"
        with served.use():
            rounds = [
                await self.some_rows(served, some, template_set, lane=lane)
                for some in split(labels, LABELS_A_ROUND)
            ]
        return np.concatenate(rounds)

    def _keep(self, key: bytes, build: _Build, done: asyncio.Task[Features]) -> None:
        self._forget(key, build)
        if not done.cancelled() and done.exception() is None:
            self._matrices.put(key, done.result())

    def _forget(self, key: bytes, build: _Build) -> None:
        """Let nobody join it any more; another one may have been begun already."""
        if self._building.get(key) is build:
            del self._building[key]


def make_classifier(
    model: Model, labels: Sequence[str], matrix: Features, activation: Activation | None = None
) -> ZeroShotClassifier:
    """A classifier that scores as the model's manifest says, unless ``activation`` says otherwise."""
    scoring = model.manifest.scoring
    return ZeroShotClassifier(
        labels=tuple(labels),
        matrix=matrix,
        logit_scale=scoring.logit_scale,
        logit_bias=scoring.logit_bias,
        activation=activation or scoring.activation,
    )


def count_prompts(labels: Sequence[Label], template_set: TemplateSet) -> int:
    """How many prompts a list of labels makes."""
    each = len(template_set.templates)
    return sum(each if label.prompts is None else len(label.prompts) for label in labels)


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Runs of at most ``size`` items, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _cache(name: str, max_bytes: int, metrics: Metrics) -> EmbeddingCache:
    cache = EmbeddingCache(max_bytes, on_event=_noting(name, metrics))
    metrics.watch(metrics.cache_bytes, name, value=lambda: cache.nbytes)
    return cache


def _noting(name: str, metrics: Metrics) -> EventListener:
    def note(event: str, count: int) -> None:
        metrics.cache_events.labels(name, event).inc(count)

    return note

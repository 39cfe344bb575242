"""Named classifiers: built once, kept in a store, served by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from models.errors import UnknownModelError
from models.manifest import Activation
from prompts.classifier import ZeroShotClassifier
from prompts.errors import UnknownClassifierError
from prompts.labels import Label
from prompts.store import ClassifierStore, StoredClassifier, check_classifier_name
from prompts.templates import TemplateSet
from service.batcher import Lane
from service.class_builder import LABELS_A_ROUND, count_prompts, make_classifier, split
from service.engine import Engine
from service.errors import InvalidRequestError, UnavailableError, message_of
from service.served import Features

_LOG = logging.getLogger("clipserve.classifiers")
_CHECKPOINT_ROUNDS = 16


@dataclass
class _Build:
    """One classifier on its way: what it is made of, and how far it has come."""

    stored: StoredClassifier
    done: int = 0
    task: asyncio.Task[None] | None = None
    error: Exception | None = None

    @property
    def state(self) -> Literal["building", "failed"]:
        return "failed" if self.error else "building"


@dataclass
class NamedClassifiers:
    """Classifiers by name. While a new one of a name is built, the old one is served."""

    engine: Engine
    store: ClassifierStore
    _builds: dict[str, _Build] = field(default_factory=dict)

    def resume(self) -> None:
        """Go on with what a stop cut off, and build anew what belongs to another version of a model."""
        for name in self.store.partial_names():
            if (partial := self.store.get_partial(name)) is not None:
                self._start(partial)
        for name in self.store.names():
            stored = self.store.get(name)
            if name not in self._builds and not self._is_current(stored):
                self._start(stored)

    async def put(
        self, name: str, labels: Sequence[Label], template_set: TemplateSet, *, model: str
    ) -> dict[str, Any]:
        """Make or replace a classifier; waits for a small one, builds a large one in the background.

        Returns:
            What ``describe`` gives.

        Raises:
            ClassifierNameError: the name cannot be used.
            StoreError: it cannot be written. This, and whatever else stops a small one, is raised; a
                large one says so where it is described.
        """
        check_classifier_name(name)
        served = self.engine.model(model)
        stored = StoredClassifier(
            name=name,
            labels=tuple(labels),
            template_set=template_set,
            model=model,
            model_digest=served.digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        build = self._start(stored)
        if build.task is not None and not self.engine.classes.is_large(labels, template_set):
            await asyncio.wait([build.task])  # it goes on if the caller leaves, and may be replaced
            if build.error is not None:
                self._finish(build)
                raise build.error
        return self.describe(name)

    def get(
        self, name: str, activation: Activation | None = None
    ) -> tuple[StoredClassifier, ZeroShotClassifier]:
        """A classifier that is ready.

        Raises:
            UnknownClassifierError: there is none of that name.
            UnavailableError: it is still being built for the first time, or its model is not loaded.
        """
        stored = self._served(name)
        if stored.matrix is None or not self._is_current(stored):
            raise UnavailableError(f"classifier {name!r} is not ready: {_progress(self._builds.get(name))}")
        model = self.engine.model(stored.model).model
        labels = [label.name for label in stored.labels]
        return stored, make_classifier(model, labels, stored.matrix, activation)

    def model_of(self, name: str, model: str | None = None) -> str:
        """The model a classifier was made for; ``model``, where given, must be the same.

        Raises:
            UnknownClassifierError: there is no classifier of that name.
            InvalidRequestError: it was made for another model.
        """
        made_for = self._served(name).model
        if model not in {None, made_for}:
            raise InvalidRequestError(f"model: classifier {name!r} was made for model {made_for!r}")
        return made_for

    def describe(self, name: str) -> dict[str, Any]:
        """What ``GET /classifiers/{name}`` answers.

        Raises:
            UnknownClassifierError: there is none of that name.
        """
        if (build := self._builds.get(name)) is not None:
            error = message_of(build.error) if build.error else None
            return _describe(build.stored, done=build.done, state=build.state, error=error)
        return _describe(self.store.get(name), state="ready")

    def list(self) -> list[dict[str, Any]]:
        """Every classifier, sorted by name."""
        return [self.describe(name) for name in sorted({*self.store.names(), *self._builds})]

    def delete(self, name: str) -> None:
        """Forget a classifier, built or being built.

        Raises:
            UnknownClassifierError: there is none of that name.
        """
        build = self._builds.pop(name, None)
        if build is not None and build.task is not None:
            build.task.cancel()
        try:
            self.store.delete(name)
        except UnknownClassifierError:
            if build is None:
                raise

    async def close(self) -> None:
        """Stop building; what is done is in the store and goes on after the next start."""
        tasks = [build.task for build in self._builds.values() if build.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _served(self, name: str) -> StoredClassifier:
        """The one in the store, as long as there is one, and the one being built otherwise."""
        build = self._builds.get(name)
        return self.store.get(name) if build is None or name in self.store.names() else build.stored

    def _is_current(self, stored: StoredClassifier) -> bool:
        try:
            served = self.engine.model(stored.model)
        except UnknownModelError:
            return False
        return stored.matrix is not None and served.digest == stored.model_digest

    def _start(self, stored: StoredClassifier) -> _Build:
        if (running := self._builds.get(stored.name)) is not None and running.task is not None:
            running.task.cancel()
        build = _Build(stored)
        self._builds[stored.name] = build
        build.task = asyncio.create_task(self._build(build))
        return build

    async def _build(self, build: _Build) -> None:
        name = build.stored.name
        try:
            await asyncio.to_thread(self.store.put, await self._complete(build))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _LOG.exception("classifier failed to build", extra={"classifier": name})
            build.error = error
        else:
            self._finish(build)

    def _finish(self, build: _Build) -> None:
        """Forget a build, unless another of its name has taken its place."""
        if self._builds.get(build.stored.name) is build:
            del self._builds[build.stored.name]

    async def _complete(self, build: _Build) -> StoredClassifier:
        """Encode what is missing, a round of labels at a time; from time to time write a checkpoint."""
        served = self.engine.model(build.stored.model)
        matrices: list[Features] = []
        if build.stored.matrix is not None and build.stored.model_digest == served.digest:
            matrices.append(build.stored.matrix)
        stored = replace(build.stored, model_digest=served.digest, matrix=None)
        labels, template_set = stored.labels, stored.template_set
        large = self.engine.classes.is_large(labels, template_set)
        lane: Lane = "bulk" if large else "interactive"
        build.done = sum(map(len, matrices))
        with served.use():
            for count, some in enumerate(split(labels[build.done :], LABELS_A_ROUND), 1):
                matrices.append(await self.engine.classes.some_rows(served, some, template_set, lane=lane))
                build.done += len(some)
                if large and count % _CHECKPOINT_ROUNDS == 0:
                    matrices = [np.concatenate(matrices)]
                    await asyncio.to_thread(self.store.put_partial, replace(stored, matrix=matrices[0]))
        return replace(stored, matrix=np.concatenate(matrices))


def _progress(build: _Build | None) -> str:
    if build is None:
        return "its model is not loaded, or has changed since"
    return (
        message_of(build.error)
        if build.error
        else f"{build.done} of {len(build.stored.labels)} labels are built"
    )


def _describe(
    stored: StoredClassifier,
    *,
    state: Literal["building", "ready", "failed"],
    done: int | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """``done`` counts labels; what is told counts prompts, since those are what takes time."""
    return {
        "name": stored.name,
        "model": stored.model,
        "template_set": stored.template_set.name,
        "labels": len(stored.labels),
        "state": state,
        "done": count_prompts(stored.labels[:done], stored.template_set),
        "total": count_prompts(stored.labels, stored.template_set),
        "created": stored.created,
    } | ({"error": error} if error else {})

"""Named classifiers: built once, kept in a store, served by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from models.errors import UnknownModelError
from models.manifest import Activation
from prompts.classifier import ZeroShotClassifier
from prompts.errors import StoreUnavailableError, SupersededError, UnknownClassifierError
from prompts.labels import Label
from prompts.store import ClassifierStore, StoredClassifier, check_classifier_name
from prompts.templates import TemplateSet
from service.class_builder import count_prompts, make_classifier
from service.classifier_builds import Build, ClassifierBuilder
from service.engine import Engine
from service.errors import InvalidRequestError, UnavailableError, message_of

_LOG = logging.getLogger("clipserve.classifiers")
_REFRESH_SECONDS = 0.25
_DECLARE_SECONDS = 0.05


@dataclass
class NamedClassifiers:
    """Classifiers by name. While a new one of a name is built, the old one is served.

    Several servers may share the store. Each builds what its own callers ask for, unless another is
    building just that; then it waits for the other, and goes on in its place should it stop.
    """

    engine: Engine
    store: ClassifierStore
    _builds: dict[str, Build] = field(default_factory=dict)
    _last_current: dict[str, StoredClassifier] = field(default_factory=dict)
    _watcher: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._builder = ClassifierBuilder(self.engine, self.store)

    async def resume(self) -> None:
        """Go on with what a stop cut off, and build anew what belongs to another version of a model.

        From then on the store is watched for what other servers do.
        """
        await self._refresh()
        self._take_up()
        await self.rebuild()
        self._watcher = asyncio.create_task(self._watch())

    async def rebuild(self) -> None:
        """Build anew what belongs to another version of its model than the one that is loaded."""
        begun = [progress for name in self.store.partial_names() if (progress := self.store.progress(name))]
        finished = [self.store.get(name) for name in self.store.names()]
        for stored in [*(progress.stored for progress in begun), *finished]:
            if stored.name not in self._builds and not self._is_current(stored):
                ticket = await self._builder.ticket_or_none()
                self._start(Build(replace(stored, ticket=ticket), patient=True))

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
        ticket = await asyncio.to_thread(self.store.ticket)
        large = self.engine.classes.is_large(labels, template_set)
        stored = self._new(name, labels, template_set, model=model, ticket=ticket)
        build = Build(stored, patient=large)
        if large:
            await self._announce(build)
        else:
            self._start(build)
        if build.task is not None and not large:
            await asyncio.wait([build.task])  # it goes on if the caller leaves, and may be replaced
            if build.error is not None:
                self._finish(build)
                raise build.error
        return self.describe(name)

    async def declare(
        self, name: str, labels: Sequence[Label], template_set: TemplateSet, *, model: str
    ) -> None:
        """Make sure that a classifier can be served; if need be from memory, until the store is back.

        Raises:
            PromptError: the name cannot be used, or the classifier cannot be built or written.
        """
        wanted = self._new(name, labels, template_set, model=model, ticket=0)
        if self._builder.same_in_store(wanted) is not None:
            return
        ticket = await self._builder.ticket_or_none()
        build = self._start(Build(replace(wanted, ticket=ticket), patient=True))
        while build.task is not None and not build.task.done() and not build.stored.complete:
            await asyncio.wait([build.task], timeout=_DECLARE_SECONDS)
        if build.error is not None:
            raise build.error

    async def look_for(self, name: str) -> None:
        """Ask the store for a name that is not known here: another server may just have built it."""
        if name not in self._builds and name not in self.store.names() and self.store.problem is None:
            await self._refresh()
            self._take_up()

    def get(
        self, name: str, activation: Activation | None = None
    ) -> tuple[StoredClassifier, ZeroShotClassifier]:
        """A classifier that is ready.

        Raises:
            UnknownClassifierError: there is none of that name.
            UnavailableError: it is still being built for the first time, or its model is not loaded.
        """
        stored = self._served(name)
        if not self._is_current(stored):
            # Another server may have the next version of the model already, and so of the classifier.
            stored = self._last_current.get(name, stored)
        if stored.matrix is None or not self._is_current(stored):
            raise UnavailableError(f"classifier {name!r} is not ready: {_progress(self._builds.get(name))}")
        self._last_current[name] = stored
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

    async def delete(self, name: str) -> None:
        """Forget a classifier, built or being built.

        Raises:
            UnknownClassifierError: there is none of that name.
            StoreUnavailableError: the store cannot be reached; everything stays as it is.
        """
        try:
            await asyncio.to_thread(self.store.delete, name)
        except UnknownClassifierError:
            if name not in self._builds:
                raise
        self._last_current.pop(name, None)
        build = self._builds.pop(name, None)
        if build is not None and build.task is not None:
            build.task.cancel()

    async def close(self) -> None:
        """Stop building; what is done is in the store and goes on after the next start, or elsewhere."""
        tasks = [build.task for build in self._builds.values() if build.task is not None]
        if self._watcher is not None:
            tasks.append(self._watcher)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()

    # What other servers do

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self._refresh()
                self._take_up()
            except Exception:
                _LOG.exception("watching the store of classifiers failed")

    async def _refresh(self) -> None:
        with contextlib.suppress(StoreUnavailableError):  # the store says so where its health is asked
            await asyncio.to_thread(self.store.refresh)

    def _take_up(self) -> None:
        """Join the builds of the store: wait for who does them, or do them if nobody does."""
        for name in self.store.partial_names():
            progress, ours = self.store.progress(name), self._builds.get(name)
            if progress is None or not self._is_for_here(progress.stored):
                continue
            if ours is None or ours.stored.ticket < progress.stored.ticket:
                self._start(Build(progress.stored, patient=True, done=progress.done))

    # One build

    def _new(
        self, name: str, labels: Sequence[Label], template_set: TemplateSet, *, model: str, ticket: int
    ) -> StoredClassifier:
        return StoredClassifier(
            name=name,
            labels=tuple(labels),
            template_set=template_set,
            model=model,
            model_digest=self.engine.model(model).digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            ticket=ticket,
        )

    def _served(self, name: str) -> StoredClassifier:
        """The one in the store, as long as there is one, and the one being built otherwise."""
        build = self._builds.get(name)
        if build is None or (name in self.store.names() and not build.stored.complete):
            return self.store.get(name)
        return build.stored

    def _is_current(self, stored: StoredClassifier) -> bool:
        return stored.matrix is not None and self._is_for_here(stored)

    def _is_for_here(self, stored: StoredClassifier) -> bool:
        """Whether it belongs to the version of its model that is loaded here."""
        try:
            return self.engine.model(stored.model).digest == stored.model_digest
        except UnknownModelError:
            return False

    def _start(self, build: Build) -> Build:
        name = build.stored.name
        if (running := self._builds.get(name)) is not None and running.task is not None:
            running.task.cancel()
        self._builds[name] = build
        build.task = asyncio.create_task(self._build(build))
        return build

    async def _build(self, build: Build) -> None:
        name = build.stored.name
        try:
            await self._builder.run(build)
        except asyncio.CancelledError:
            raise
        except SupersededError:
            await self._refresh()
            self._finish(build)
            self._take_up()  # who asked is answered with what has taken its place
        except Exception as error:
            _LOG.exception("classifier failed to build", extra={"classifier": name})
            build.error, build.stored = error, replace(build.stored, matrix=None)
        else:
            self._finish(build)

    async def _announce(self, build: Build) -> None:
        """Start a build that others know of before its caller is answered."""
        try:
            await self._builder.announce(build)
        except SupersededError:
            await self._refresh()
            self._take_up()
        else:
            self._start(build)

    def _finish(self, build: Build) -> None:
        """Forget a build, unless another of its name has taken its place."""
        if self._builds.get(build.stored.name) is build:
            del self._builds[build.stored.name]


def _progress(build: Build | None) -> str:
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

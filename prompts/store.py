"""Where named classifiers are kept, so that they outlive the process."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from prompts.errors import PromptError, StoreError, SupersededError, UnknownClassifierError
from prompts.stored import StoredClassifier, check_classifier_name, from_bytes, to_bytes

__all__ = [
    "ClassifierStore",
    "DirectoryStore",
    "Lease",
    "Progress",
    "StoredClassifier",
    "check_classifier_name",
    "from_bytes",
    "to_bytes",
]

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_Version = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """A build that some process has begun: what it is made of, and how many labels are done."""

    stored: StoredClassifier
    done: int


class Lease(Protocol):
    """The right to build one classifier, so that of several processes one does the work.

    It is an economy and no safeguard: a lease may expire while its holder still writes. What keeps a late
    write out is ``StoredClassifier.ticket``.
    """

    def renew(self) -> None:
        """Hold it for another term; silent if it is lost. StoreUnavailableError if nobody can tell."""
        ...

    def release(self) -> None:
        """Let others have it; silent if it is lost. StoreUnavailableError if it can only expire."""
        ...


class ClassifierStore(Protocol):
    """Where named classifiers are kept. Safe to share among threads.

    Names, classifiers and progress are read from memory, which ``refresh`` brings up to date with what
    other processes wrote. Everything else may block, and ends with StoreUnavailableError where the store
    cannot be reached.

    A partial classifier is the checkpoint of a build; it lies beside the classifier of its name, which
    goes on being served, until ``put`` takes the place of both.
    """

    @property
    def problem(self) -> str | None:
        """Why the store cannot be reached, as far as the last call could tell."""
        ...

    @property
    def broken(self) -> dict[str, str]:
        """Names that are taken but cannot be read, and why."""
        ...

    def names(self) -> tuple[str, ...]:
        """Names of the readable classifiers, sorted."""
        ...

    def partial_names(self) -> tuple[str, ...]:
        """Names of the unfinished builds, sorted."""
        ...

    def get(self, name: str) -> StoredClassifier:
        """The classifier of that name; UnknownClassifierError if none, StoreError if it is broken."""
        ...

    def progress(self, name: str) -> Progress | None:
        """How far the unfinished build of that name has come, if there is one."""
        ...

    def superseded(self, classifier: StoredClassifier) -> bool:
        """Whether a write of ``classifier`` would be refused, as far as is known here."""
        ...

    def refresh(self) -> None:
        """See what other processes have written and deleted since the last time."""
        ...

    def ticket(self) -> int:
        """A number above all that were given out before, for ``StoredClassifier.ticket``."""
        ...

    def lease(self, classifier: StoredClassifier) -> Lease | None:
        """The right to build what this classifier is made of; None while another process has it."""
        ...

    def get_partial(self, name: str) -> StoredClassifier | None:
        """The checkpoint of that name, if there is one."""
        ...

    def put(self, classifier: StoredClassifier) -> None:
        """Keep a classifier, in place of any of its name, and drop its checkpoint.

        Raises:
            SupersededError: its ticket is older than what the store has.
            StoreError: it is half built, or cannot be written; what was there stays.
        """
        ...

    def put_partial(self, classifier: StoredClassifier) -> None:
        """Keep a checkpoint, in place of any of its name. Raises as ``put`` does."""
        ...

    def delete(self, name: str) -> None:
        """Remove a classifier and its checkpoint; UnknownClassifierError if there is neither."""
        ...

    def close(self) -> None:
        """Let go of connections. What is in memory can still be read."""
        ...


class DirectoryStore:
    """Keeps each classifier in a file of its own, all of them read at the start.

    A file that cannot be read is logged and listed as ``broken``, and the others are served. Writing is
    atomic: after a crash a file is the old one or the new one. Several processes may share a folder and
    see each other's finished classifiers; each builds on its own.

    Raises:
        StoreError: the folder cannot be made or listed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = Lock()
        self._deleted: dict[str, int] = {}  # at which ticket: what was begun before brings it not back
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._complete = _Shelf(folder, ".classifier")
            self._partial = _Shelf(folder, ".partial")
        except OSError as error:
            raise StoreError(f"classifier folder {folder}: cannot be used ({error.strerror})") from error

    @property
    def problem(self) -> None:
        """Always None: a folder is there, or the store could not have been made."""

    @property
    def broken(self) -> dict[str, str]:
        """Names whose file cannot be read, and why."""
        return self._complete.broken

    def names(self) -> tuple[str, ...]:
        """Names of the readable classifiers, sorted."""
        return tuple(sorted(self._complete.loaded))

    def partial_names(self) -> tuple[str, ...]:
        """Names of the unfinished builds, sorted."""
        return tuple(sorted(self._partial.loaded))

    def get(self, name: str) -> StoredClassifier:
        """The classifier of that name.

        Raises:
            UnknownClassifierError: there is none.
            StoreError: there is one, and its file cannot be read.
        """
        found = self._complete.loaded.get(name)
        if found is not None:
            return found
        if name in self.broken:
            raise StoreError(f"classifier {name!r} cannot be read: {self.broken[name]}")
        raise UnknownClassifierError(f"classifier: none is named {name[:80]!r}")

    def progress(self, name: str) -> Progress | None:
        """How far the unfinished build of that name had come when its checkpoint was written."""
        partial = self._partial.loaded.get(name)
        return None if partial is None else Progress(stored=partial, done=partial.done)

    def superseded(self, classifier: StoredClassifier) -> bool:
        """Whether a newer one of its name is in the folder, or it was deleted since."""
        there = self._complete.loaded.get(classifier.name)
        newest = there.ticket if there is not None else self._deleted.get(classifier.name, 0)
        return newest > classifier.ticket

    def refresh(self) -> None:
        """Read the files of finished classifiers that have changed, and forget those that are gone.

        Raises:
            StoreError: the folder cannot be listed.
        """
        with self._writing:
            try:
                self._complete.refresh()
            except OSError as error:
                raise StoreError(f"{self._folder}: cannot be listed ({error.strerror})") from error

    def ticket(self) -> int:
        """The time in nanoseconds."""
        return time.time_ns()

    def lease(self, classifier: StoredClassifier) -> Lease | None:  # noqa: ARG002
        """Always granted: processes that share a folder do not share work."""
        return _AlwaysGranted()

    def get_partial(self, name: str) -> StoredClassifier | None:
        """The checkpoint of that name, if there is one that can be read."""
        return self._partial.loaded.get(name)

    def put(self, classifier: StoredClassifier) -> None:
        """Keep a classifier, in place of any of its name, and drop its checkpoint.

        Raises:
            SupersededError: a newer one of its name is in the folder, or it was deleted since.
            StoreError: it is half built, or the file cannot be written; what was there stays.
        """
        check_whole(classifier)
        with self._writing:
            self._check_ticket(classifier)
            self._complete.put(classifier)
            self._partial.remove(classifier.name)

    def put_partial(self, classifier: StoredClassifier) -> None:
        """Keep a checkpoint, in place of any of its name.

        Raises:
            SupersededError: a newer one of its name is in the folder, or it was deleted since.
            StoreError: the file cannot be written.
        """
        with self._writing:
            self._check_ticket(classifier)
            self._partial.put(classifier)

    def delete(self, name: str) -> None:
        """Remove a classifier, readable or not, and its checkpoint.

        Raises:
            UnknownClassifierError: there is neither.
            StoreError: a file cannot be removed.
        """
        with self._writing:
            removed = [shelf.remove(name) for shelf in (self._complete, self._partial)]
            self._deleted[name] = self.ticket()
        if not any(removed):
            raise UnknownClassifierError(f"classifier: none is named {name[:80]!r}")

    def close(self) -> None:
        """Nothing is open."""

    def _check_ticket(self, classifier: StoredClassifier) -> None:
        if self.superseded(classifier):
            raise SupersededError(f"{classifier.name!r}: was stored anew, or deleted, meanwhile")


def check_whole(classifier: StoredClassifier) -> None:
    """Hold a classifier that is to be put to having all its rows, or none yet.

    Raises:
        StoreError: it is half built.
    """
    if classifier.matrix is not None and not classifier.complete:
        raise StoreError(f"{classifier.name!r} has {classifier.done} of {len(classifier.labels)} labels")


class _AlwaysGranted:
    def renew(self) -> None:
        pass

    def release(self) -> None:
        pass


class _Shelf:
    """The files of one suffix. One thread at a time may write.

    ``loaded`` and ``broken`` are replaced, never changed, so that readers need no lock.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix
        self.loaded: dict[str, StoredClassifier] = {}
        self.broken: dict[str, str] = {}
        self._seen: dict[str, _Version] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what has changed. Every file is looked at: a folder's own time misses rapid changes."""
        files = [
            path
            for path in self._folder.iterdir()
            if path.suffix == self._suffix and not path.name.startswith(".")
        ]
        found = {path.stem: version for path in sorted(files) if (version := _version(path)) is not None}
        for name in self._seen.keys() - found.keys():
            self._forget(name)
        for name in [name for name, version in found.items() if version != self._seen.get(name)]:
            self._load(self._path(name))
        self._seen = found

    def _load(self, path: Path) -> None:
        name = path.stem
        try:
            classifier = from_bytes(path.read_bytes())
            if classifier.name != name:
                raise StoreError(f"it holds {classifier.name!r}")
        except (PromptError, OSError) as error:
            log.warning("classifier file %s is skipped: %s", path, error)
            self.loaded = _without(self.loaded, name)
            self.broken = {**self.broken, name: str(error)}
        else:
            self._keep(classifier)

    def put(self, classifier: StoredClassifier) -> None:
        path = self._path(classifier.name)
        try:
            _write_atomically(path, to_bytes(classifier))
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
        self._keep(classifier)
        if (version := _version(path)) is not None:
            self._seen[classifier.name] = version

    def remove(self, name: str) -> bool:
        if name not in self.loaded and name not in self.broken:
            return False
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be removed ({error.strerror})") from error
        self._forget(name)
        return True

    def _path(self, name: str) -> Path:
        return self._folder / (name + self._suffix)

    def _keep(self, classifier: StoredClassifier) -> None:
        self.loaded = {**self.loaded, classifier.name: classifier}
        self.broken = _without(self.broken, classifier.name)

    def _forget(self, name: str) -> None:
        self.loaded = _without(self.loaded, name)
        self.broken = _without(self.broken, name)
        self._seen.pop(name, None)


def _version(path: Path) -> _Version | None:
    """What tells one state of a file from the next; None if it is just being removed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _without(entries: dict[str, _Value], name: str) -> dict[str, _Value]:
    return {key: value for key, value in entries.items() if key != name}


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

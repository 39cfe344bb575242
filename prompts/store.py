"""Where named classifiers are kept, so that they outlive the process."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from prompts.errors import PromptError, StoreError, UnknownClassifierError
from prompts.stored import StoredClassifier, check_classifier_name, from_bytes, to_bytes

__all__ = [
    "ClassifierStore",
    "DirectoryStore",
    "StoredClassifier",
    "check_classifier_name",
    "from_bytes",
    "to_bytes",
]

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class ClassifierStore(Protocol):
    """Where named classifiers are kept. Safe to share among threads.

    A partial classifier is the checkpoint of a build; it lies beside the classifier of its name, which
    goes on being served, until ``put`` takes the place of both.
    """

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

    def get_partial(self, name: str) -> StoredClassifier | None:
        """The checkpoint of that name, if there is one."""
        ...

    def put(self, classifier: StoredClassifier) -> None:
        """Keep a classifier, in place of any of its name; StoreError if it cannot be written."""
        ...

    def put_partial(self, classifier: StoredClassifier) -> None:
        """Keep a checkpoint, in place of any of its name; StoreError if it cannot be written."""
        ...

    def delete(self, name: str) -> None:
        """Remove a classifier and its checkpoint; UnknownClassifierError if there is neither."""
        ...


class DirectoryStore:
    """Keeps each classifier in a file of its own, all of them read at the start.

    A file that cannot be read is logged and listed as ``broken``, and the others are served. Writing is
    atomic: after a crash a file is the old one or the new one.

    Raises:
        StoreError: the folder cannot be made or listed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._complete = _Shelf(folder, ".classifier")
            self._partial = _Shelf(folder, ".partial")
        except OSError as error:
            raise StoreError(f"classifier folder {folder}: cannot be used ({error.strerror})") from error

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

    def get_partial(self, name: str) -> StoredClassifier | None:
        """The checkpoint of that name, if there is one that can be read."""
        return self._partial.loaded.get(name)

    def put(self, classifier: StoredClassifier) -> None:
        """Keep a classifier, in place of any of its name, and drop its checkpoint.

        Raises:
            StoreError: it is half built, or the file cannot be written; what was there stays.
        """
        if classifier.matrix is not None and not classifier.complete:
            raise StoreError(f"{classifier.name!r} has {classifier.done} of {len(classifier.labels)} labels")
        with self._writing:
            self._complete.put(classifier)
            self._partial.remove(classifier.name)

    def put_partial(self, classifier: StoredClassifier) -> None:
        """Keep a checkpoint, in place of any of its name.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._writing:
            self._partial.put(classifier)

    def delete(self, name: str) -> None:
        """Remove a classifier, readable or not, and its checkpoint.

        Raises:
            UnknownClassifierError: there is neither.
            StoreError: a file cannot be removed.
        """
        with self._writing:
            removed = [shelf.remove(name) for shelf in (self._complete, self._partial)]
        if not any(removed):
            raise UnknownClassifierError(f"classifier: none is named {name[:80]!r}")


class _Shelf:
    """The files of one suffix. One thread at a time may write.

    ``loaded`` and ``broken`` are replaced, never changed, so that readers need no lock.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix
        self.loaded: dict[str, StoredClassifier] = {}
        self.broken: dict[str, str] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix == suffix and not path.name.startswith("."):
                self._load(path)

    def _load(self, path: Path) -> None:
        try:
            classifier = from_bytes(path.read_bytes())
            if classifier.name != path.stem:
                raise StoreError(f"it holds {classifier.name!r}")
        except (PromptError, OSError) as error:
            log.warning("classifier file %s is skipped: %s", path, error)
            self.broken[path.stem] = str(error)
        else:
            self.loaded[path.stem] = classifier

    def put(self, classifier: StoredClassifier) -> None:
        name = classifier.name
        path = self._folder / (name + self._suffix)
        try:
            _write_atomically(path, to_bytes(classifier))
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
        self.loaded = {**self.loaded, name: classifier}
        self.broken = _without(self.broken, name)

    def remove(self, name: str) -> bool:
        if name not in self.loaded and name not in self.broken:
            return False
        path = self._folder / (name + self._suffix)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be removed ({error.strerror})") from error
        self.loaded = _without(self.loaded, name)
        self.broken = _without(self.broken, name)
        return True


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

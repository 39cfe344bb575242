"""A cache of embeddings, bounded in bytes, with keys made of content and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prompts.labels import Label
from prompts.templates import TemplateSet

Event = Literal["hit", "miss", "evict", "reject"]
EventListener = Callable[[Event, int], None]

ENTRY_OVERHEAD = 384  # bytes, about: key, array object, its place in the mapping
_KEY_BYTES = 20


def class_key(model_digest: str, template_set: TemplateSet, label: Label) -> bytes:
    """Key of one class embedding. A label with prompts of its own has the same key in every set."""
    return _key("class", model_digest, template_set, (label,))


def matrix_key(model_digest: str, template_set: TemplateSet, labels: Sequence[Label]) -> bytes:
    """Key of a whole matrix of class embeddings, rows in the order of ``labels``."""
    return _key("matrix", model_digest, template_set, labels)


def _key(kind: str, model_digest: str, template_set: TemplateSet, labels: Sequence[Label]) -> bytes:
    # JSON keeps every boundary, tells a name from a list of prompts, and is written at the speed of C.
    content = [label.name if label.prompts is None else label.prompts for label in labels]
    digest = template_set.digest if any(label.prompts is None for label in labels) else None
    text = json.dumps([kind, model_digest, digest, content])
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


def _ignore(_event: Event, _count: int) -> None:
    """Hear nothing."""


class EmbeddingCache:
    """Least recently used arrays go first once ``max_bytes`` are reached. Safe to share among threads.

    Arrays that come out are read-only and shared. ``on_event(event, count)`` is told of every hit,
    miss, eviction, and rejection (an array larger than the whole cache), outside the lock.
    """

    def __init__(self, max_bytes: int, on_event: EventListener | None = None) -> None:
        self._max_bytes = max_bytes
        self._on_event = _ignore if on_event is None else on_event
        self._entries: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now: the arrays, and a fixed overhead for each."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The array of a key, or None."""
        return self.get_many((key,))[0]

    def get_many(self, keys: Sequence[bytes]) -> list[NDArray[np.float32] | None]:
        """The array of each key, or None, in the order of ``keys``."""
        with self._lock:
            found = [self._entries.get(key) for key in keys]
            for key, array in zip(keys, found, strict=True):
                if array is not None:
                    self._entries.move_to_end(key)
        misses = sum(array is None for array in found)
        self._report("hit", len(found) - misses)
        self._report("miss", misses)
        return found

    def put(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Keep an array; the cache has a copy of its own, so the caller's may change afterwards."""
        if array.nbytes + ENTRY_OVERHEAD > self._max_bytes:
            self._report("reject", 1)
            return
        kept = _own(array)
        with self._lock:
            self._forget(key)
            self._entries[key] = kept
            self._nbytes += kept.nbytes + ENTRY_OVERHEAD
            evicted = 0
            while self._nbytes > self._max_bytes:
                self._forget(next(iter(self._entries)))
                evicted += 1
        self._report("evict", evicted)

    def put_many(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Keep row i of (N, D) under ``keys[i]``."""
        for key, row in zip(keys, rows, strict=True):
            self.put(key, row)

    def clear(self) -> None:
        """Forget everything, silently."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def _forget(self, key: bytes) -> None:
        array = self._entries.pop(key, None)
        if array is not None:
            self._nbytes -= array.nbytes + ENTRY_OVERHEAD

    def _report(self, event: Event, count: int) -> None:
        if count:
            self._on_event(event, count)


def _own(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A read-only copy; never a view, which would keep the whole matrix behind a row alive uncounted."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy

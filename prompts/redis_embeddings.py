"""Class embeddings shared through Redis: what one process has encoded, others need not encode again.

They may be lost at any time and cost nothing but work: each has an expiry, so that a Redis with
``maxmemory-policy volatile-lru`` drops them, and never a classifier, when it is full.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_PAUSE = 2.0  # seconds for which Redis is left alone after it failed
_DTYPE = np.dtype("<f4")


class RedisEmbeddings:
    """Keeps rows for ``seconds`` after they were written. Safe to share among threads; blocks briefly.

    It never raises: while Redis cannot be reached, nothing is found and nothing is kept.
    """

    def __init__(
        self,
        client: Redis,
        *,
        seconds: int,
        prefix: str = "clipserve",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._seconds = seconds
        self._prefix = f"{prefix}:embedding:".encode()
        self._clock = clock
        self._paused_until = 0.0

    def get_many(self, keys: Sequence[bytes], *, dim: int) -> list[NDArray[np.float32] | None]:
        """The row (D,) float32 of each key, or None, in the order of ``keys``."""
        found = self._ask(lambda: self._client.mget([self._prefix + key for key in keys])) if keys else []
        return [_row(data, dim) for data in found] if found else [None] * len(keys)

    def put_many(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Keep row i of (N, D) under ``keys[i]``."""
        with self._client.pipeline(transaction=False) as pipeline:
            for key, row in zip(keys, rows, strict=True):
                pipeline.set(self._prefix + key, row.astype(_DTYPE).tobytes(), ex=self._seconds)
            self._ask(pipeline.execute)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer; None if there is none. A request that waits must not find out anew each time."""
        if self._clock() < self._paused_until:
            return None
        try:
            return question()
        except RedisError as error:
            log.debug("class embeddings are not shared for now: %s", error)
            self._paused_until = self._clock() + _PAUSE
            return None


def _row(data: bytes | None, dim: int) -> NDArray[np.float32] | None:
    """A row as it was written; None for whatever else lies under its key."""
    if data is None or len(data) != dim * _DTYPE.itemsize:
        return None
    row = np.frombuffer(data, _DTYPE).astype(np.float32)
    return row if np.isfinite(row).all() else None

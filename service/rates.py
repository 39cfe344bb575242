"""How many items a second the holder of a key may send."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.errors import RateLimitedError


class TokenBucket:
    """Fills by ``rate`` tokens a second up to ``burst``; an item takes one.

    A request is let in on its first item, as the others are not known before its body is read. They are
    taken afterwards, if need be on credit, which the next requests have to wait for: over time ``rate``
    holds, and a request larger than ``burst`` still has its turn.
    """

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def enter(self) -> None:
        """Take the token of a request's first item.

        Raises:
            RateLimitedError: there is none; it says when there will be.
        """
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            raise RateLimitedError(
                f"this key may send {self._rate:g} items a second, and {self._burst:g} after a pause",
                retry_after=(1 - self._tokens) / self._rate,
            )
        self._tokens -= 1

    def charge(self, items: int) -> None:
        """Take the tokens of further items, on credit if there are not enough."""
        self._tokens -= items

"""Admission: a request holds its places before its body is read, so that overload costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.batcher import QueueFullError


class Admission:
    """Counts the items of all requests that are being worked on, up to ``capacity``.

    ``expected_wait`` tells how many seconds the present queue needs; refusals carry it as Retry-After.
    """

    def __init__(self, capacity: int, *, expected_wait: Callable[[], float]) -> None:
        self._capacity = capacity
        self._expected_wait = expected_wait
        self._taken = 0

    @property
    def taken(self) -> int:
        """Items admitted and not yet answered."""
        return self._taken

    @contextmanager
    def reserve(self, charge: Callable[[int], None] | None = None) -> Iterator[Places]:
        """One place for a request whose number of items is not known yet, given back at the end.

        ``charge`` is told how many items come on top of the first, once that is known.

        Raises:
            QueueFullError: none is left.
        """
        self.take(1)
        places = Places(self, charge)
        try:
            yield places
        finally:
            self._taken -= places.held

    def take(self, count: int) -> None:
        """Take ``count`` more places, all or none."""
        if self._taken + count > self._capacity:
            raise QueueFullError(
                f"the server is full: {self._taken} items are being worked on, {count} more are over the"
                f" limit of {self._capacity}",
                retry_after=self._expected_wait(),
            )
        self._taken += count


class Places:
    """What one request holds."""

    def __init__(self, admission: Admission, charge: Callable[[int], None] | None) -> None:
        self._admission = admission
        self._charge = charge
        self.held = 1

    def grow_to(self, count: int) -> None:
        """Hold ``count`` places, once the body has told how many items there are.

        Raises:
            QueueFullError: they are not all free; what was held stays held.
        """
        more = max(0, count - self.held)
        self._admission.take(more)
        self.held += more
        if self._charge is not None:
            self._charge(more)

"""What one of several processes that serve together knows of the others."""

from __future__ import annotations

from dataclasses import dataclass
from socket import socket
from typing import Protocol


class Counts(Protocol):
    """A sequence of numbers; in shared memory it is an array of ``ctypes``, which is no ``Sequence``."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Process ``number`` of those that share ``listening``, and ``metrics_socket`` where there is one.

    ``starts`` lies in shared memory: how often each of them has become ready. ``replaces``: another one
    has died, and this one takes no connection before it can answer.
    """

    number: int
    starts: Counts
    listening: socket
    metrics_socket: socket | None
    replaces: bool

    def tell_ready(self) -> None:
        """The models of this process are loaded."""
        self.starts[self.number] += 1

    def all_ready(self) -> bool:
        """Whether every process has been ready; one that is being replaced takes no connections."""
        return all(self.starts[place] for place in range(len(self.starts)))

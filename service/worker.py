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
class Member:
    """Process ``number`` of several. ``starts``, in shared memory, is how often each has become ready."""

    number: int
    starts: Counts

    def tell_ready(self) -> None:
        """The models of this process are loaded."""
        self.starts[self.number] += 1

    def all_ready(self) -> bool:
        """Whether every process has been ready; one that is being replaced takes no connections."""
        return all(self.starts[place] for place in range(len(self.starts)))


@dataclass(frozen=True, kw_only=True)
class Worker(Member):
    """One of those that share ``listening``, and ``metrics_socket`` where there is one.

    ``replaces``: another one has died, and this one takes no connection before it can answer. ``bell``: the
    engine process that encodes for it is asked for a connection here; without one it encodes itself.
    """

    listening: socket
    metrics_socket: socket | None
    replaces: bool
    bell: socket | None = None


@dataclass(frozen=True, kw_only=True)
class EngineMember(Member):
    """The engine process. At ``door`` it hears whoever has rung one of the bells, before its time too.

    ``beats`` lies in shared memory, and its one number changes as long as the process is not stuck.
    """

    door: socket
    beats: Counts

    def tell_alive(self) -> None:
        """The event loop of this process turns."""
        self.beats[0] += 1

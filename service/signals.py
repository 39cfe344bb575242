"""Signals to stop: which of them are one stop, and which say that someone will not wait."""

from __future__ import annotations

import time

_ECHO_SECONDS = 1.0


class StopSignals:
    """Tells a second signal to stop from echoes of the first.

    systemd tells every process of a service, and the parent of several passes on what it is told; GNU timeout
    tells its child, and then everyone in its group.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def is_second(self) -> bool:
        """Note a signal; whether it came so long after the first that it means another stop."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > _ECHO_SECONDS

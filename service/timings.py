"""Where the time of one request went; becomes the ``Server-Timing`` header and ``stage_seconds``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["read", "fetch", "decode", "queue", "encode", "score"]


class Timings:
    """Seconds by stage. A stage that ran for several items at once counts its longest one."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}

    def note(self, stage: Stage, seconds: float) -> None:
        """Keep the longest time seen for ``stage``."""
        self.seconds[stage] = max(seconds, self.seconds.get(stage, 0.0))

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Note the time the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.note(stage, time.perf_counter() - began)

    def header(self) -> str:
        """The value of ``Server-Timing`` (W3C Server Timing), in milliseconds."""
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in self.seconds.items())

"""Where the time of one request went; becomes the ``Server-Timing`` header and ``stage_seconds``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal

Stage = Literal["read", "fetch", "decode", "queue", "encode", "score"]


class Timings:
    """Seconds by stage. A stage that ran for several items at once counts its longest one.

    ``model``: which one the request is for, once that is known. ``ids``: what log lines name the request by,
    and its trace where there is one.
    """

    ids: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self.model = ""

    def note(
        self,
        stage: Stage,
        seconds: float,
        *,
        ago: float = 0.0,  # noqa: ARG002 (this and the others are for traces: see service.tracing)
        items: int = 0,  # noqa: ARG002
        batch_size: int = 0,  # noqa: ARG002
    ) -> None:
        """Keep the longest time seen for ``stage``, which ended ``ago`` seconds before now.

        ``items`` went through it; ``batch_size`` is that of the largest batch they were in.
        """
        self.seconds[stage] = max(seconds, self.seconds.get(stage, 0.0))

    @contextmanager
    def measure(self, stage: Stage, *, items: int = 0) -> Iterator[None]:
        """Note the time the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.note(stage, time.perf_counter() - began, items=items)

    def end(self, *, method: str, route: str | None, status: int, request_id: str) -> None:
        """The request has been answered with ``status``; ``route`` is the pattern that its path matched."""

    def header(self) -> str:
        """The value of ``Server-Timing`` (W3C Server Timing), in milliseconds."""
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in self.seconds.items())

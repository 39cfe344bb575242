"""How many processes a server is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Processes that answer requests, each with an engine of its own or all with one beside them."""

    workers: int
    shared_engine: bool = False

    def __str__(self) -> str:
        if self.shared_engine:
            return f"{self.workers} fronts + engine"
        return "one" if self.workers == 1 else f"{self.workers} workers"

    @property
    def environment(self) -> dict[str, str]:
        """For a server."""
        return {
            "CLIPSERVE_WORKERS": str(self.workers),
            "CLIPSERVE_SHARED_ENGINE": str(self.shared_engine).lower(),
        }

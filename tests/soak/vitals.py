"""What a process holds, as Linux tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """Resident memory in bytes, open file descriptors and threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Vitals:
        process = Path(f"/proc/{pid}")
        lines = (line.split() for line in (process / "status").read_text().splitlines())
        status = {words[0]: words[1] for words in lines if len(words) > 1}
        return cls(
            memory=1024 * int(status["VmRSS:"]),
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads:"]),
        )

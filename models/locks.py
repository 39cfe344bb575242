"""Locks between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nobody serves with several processes
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def one_at_a_time(folder: Path | None) -> Iterator[None]:
    """Let no other process into the block with the same ``folder``; waits for one that is in it.

    Where there is no folder, or it cannot be written, nobody is kept out.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None and fcntl is not None:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                fcntl.flock(stack.enter_context((folder / "lock").open("ab")), fcntl.LOCK_EX)
        yield

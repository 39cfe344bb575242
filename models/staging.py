"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import ExportError, ModelError

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def staged(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; when the block ends well it takes the place of ``destination``, else it vanishes.

    It lies in a hidden folder beside ``destination``, so the move is a rename. With ``overwrite`` what was
    there is moved aside first, and back again should the rename fail.

    Raises:
        ExportError: ``destination`` exists and ``overwrite`` is off, or the disk refuses; one sentence.
    """
    refuse_existing(destination, overwrite=overwrite)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staged-", dir=destination.parent) as temporary:
            folder = Path(temporary, destination.name)
            folder.mkdir()
            yield folder
            _swap(folder, destination, aside=Path(temporary, "replaced"))
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        reason = "the disk is full" if error.errno in _DISK_FULL else error.strerror or error
        raise ExportError(f"{destination} could not be written: {reason}") from error


def refuse_existing(destination: Path, *, overwrite: bool) -> None:
    """Fail now rather than after minutes of work for which there is no place.

    Raises:
        ExportError: ``destination`` exists and ``overwrite`` is off.
    """
    if destination.exists() and not overwrite:
        raise ExportError(
            f"{destination} exists; remove it, choose another name, or ask for it to be replaced"
        )


def _swap(folder: Path, destination: Path, *, aside: Path) -> None:
    if not destination.exists():
        folder.rename(destination)
        return
    destination.rename(aside)
    try:
        folder.rename(destination)
    except OSError:
        aside.rename(destination)
        raise

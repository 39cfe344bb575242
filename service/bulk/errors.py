"""Everything that a bulk job raises on purpose, and how it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


class BulkError(Exception):
    """A job cannot be done; the text is fit for a user's eyes."""


class InputError(BulkError):
    """An input is not there, or is not what its name says."""


class OutputError(BulkError):
    """The output cannot be written, or belongs to another job."""


class UnreadableError(BulkError):
    """One picture cannot be read; the others are none the worse."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses, in one sentence.

    Raises:
        OutputError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def require_pyarrow(path: Path) -> None:
    """Say what to install, where reading or writing ``path`` needs it.

    Raises:
        BulkError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise BulkError(f"{path}: Parquet needs pyarrow; install it with: pip install 'clipserve[bulk]'")

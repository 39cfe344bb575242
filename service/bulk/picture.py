"""A picture that waits to be embedded, wherever it lies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.bulk.errors import UnreadableError

Content = bytes | Path


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A name and a way to the bytes.

    ``key`` is unique among all inputs. ``load`` gives the file's bytes, or the path that they are to be read
    from; it must be called before the next picture is asked for, and raises ``UnreadableError``. What is
    never loaded costs next to nothing: that is how pictures of an earlier run are passed over.
    """

    key: str
    load: Callable[[], Content]


def file_picture(path: Path) -> Picture:
    """A file that is read where it is decoded."""
    return Picture(key=printable(path), load=lambda: path)


def unreadable(key: str, reason: str) -> Picture:
    """What stands for a picture, or a file full of them, that cannot be read."""

    def load() -> Content:
        raise UnreadableError(reason)

    return Picture(key=key, load=load)


def printable(path: Path) -> str:
    r"""A path as text: bytes of its name that are no UTF-8 are written as ``\x..``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(content: Content, *, max_bytes: int) -> bytes:
    """The bytes of a picture.

    Raises:
        UnreadableError: the file cannot be read, is no regular file, or is larger than ``max_bytes``.
    """
    if isinstance(content, bytes):
        check_size(len(content), max_bytes)
        return content
    try:
        found = content.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableError("it is no file")
        check_size(found.st_size, max_bytes)
        return content.read_bytes()
    except OSError as error:
        raise UnreadableError(f"it cannot be read ({error.strerror})") from error


def check_size(size: int, max_bytes: int) -> None:
    """Refuse what a server would refuse too.

    Raises:
        UnreadableError: ``size`` is above ``max_bytes``.
    """
    if size > max_bytes:
        raise UnreadableError(f"it has {size} bytes; the limit is {max_bytes} (CLIPSERVE_MAX_IMAGE_BYTES)")

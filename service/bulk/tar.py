"""Pictures in tar archives, such as the shards of a WebDataset."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from models.preprocess import SUFFIXES
from service.bulk.errors import UnreadableError
from service.bulk.picture import Picture, check_size, printable, unreadable

_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


class Tar:
    """The picture files of one archive, in the order they lie in it; a key is ``archive/member``.

    A damaged archive gives what comes before the damage, and one unreadable picture in its own name.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def pictures(self) -> Iterator[Picture]:
        """As ``Source.pictures``."""
        name = printable(self._path)
        try:
            with tarfile.open(self._path, errors="backslashreplace") as archive:
                for member in _picture_members(archive):
                    yield Picture(
                        key=f"{name}/{member.name}",
                        load=partial(_read, archive, member, max_bytes=self._max_bytes),
                    )
                _check_end(archive)
        except _DAMAGE as error:
            yield unreadable(name, f"the archive cannot be read to its end: {error}")

    def count(self) -> int | None:
        """As ``Source.count``: one seek a member, which only an uncompressed archive allows."""
        try:
            with tarfile.open(self._path, "r:") as archive:
                return sum(1 for _ in _picture_members(archive))
        except _DAMAGE:
            return None


def _picture_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
            yield member
        archive.members = []  # type: ignore[attr-defined]  # it would keep every member it has ever met


def _check_end(archive: tarfile.TarFile) -> None:
    """Behind the last member lie blocks of zeros. ``tarfile`` takes a broken or missing header for them."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut off, or broken behind the last member")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, *, max_bytes: int) -> bytes:
    check_size(member.size, max_bytes)
    try:
        stream = archive.extractfile(member)
        return stream.read() if stream is not None else b""
    except _DAMAGE as error:
        raise UnreadableError(f"it cannot be read from the archive: {error}") from error

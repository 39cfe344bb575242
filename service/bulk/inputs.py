"""What a user names on the command line → sources of pictures."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from models.preprocess import SUFFIXES
from service.bulk.errors import InputError, require_pyarrow
from service.bulk.picture import Picture, file_picture, printable, unreadable

STDIN = "-"
_LISTS = frozenset({".txt", ".lst", ".list"})
_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Source(Protocol):
    """Pictures that lie together."""

    def pictures(self) -> Iterator[Picture]:
        """Each of them, always in the same order."""
        ...

    def count(self) -> int | None:
        """How many there are, or None where only reading everything would tell. May be called beside the
        other, from another thread."""
        ...


class Folder:
    """Picture files, however deep; sorted within each folder, so that only one listing is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pictures(self) -> Iterator[Picture]:
        """As ``Source.pictures``; at the end an unreadable one for each folder that cannot be listed."""
        refused: list[OSError] = []
        for path in self._files(refused.append):
            yield file_picture(path)
        for error in refused:
            yield unreadable(printable(Path(error.filename)), f"it cannot be listed ({error.strerror})")

    def count(self) -> int:
        """As ``Source.count``."""
        return sum(1 for _ in self._files())

    def _files(self, on_refusal: Callable[[OSError], None] | None = None) -> Iterator[Path]:
        for folder, inner, names in os.walk(self._path, onerror=on_refusal):
            inner.sort()
            place = Path(folder)
            for name in sorted(names):
                if Path(name).suffix.lower() in SUFFIXES:
                    yield place / name


class File:
    """One picture file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pictures(self) -> Iterator[Picture]:
        """As ``Source.pictures``."""
        yield file_picture(self._path)

    def count(self) -> int:
        """As ``Source.count``."""
        return 1


class ListFile:
    """A text file with the path of a picture a line; without ``path`` it is standard input."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def pictures(self) -> Iterator[Picture]:
        """As ``Source.pictures``."""
        lines = nullcontext(sys.stdin.buffer) if self._path is None else self._path.open("rb")
        with lines as stream:
            for line in stream:
                if name := line.rstrip(b"\r\n"):
                    yield file_picture(Path(os.fsdecode(name)))

    def count(self) -> int | None:
        """As ``Source.count``."""
        return None if self._path is None else sum(1 for _ in self.pictures())


def find_sources(
    names: Iterable[str], *, column: str, key_column: str | None = None, max_bytes: int
) -> Sequence[Source]:
    """The sources that ``names`` stand for: folders, pictures, lists, tars, Parquet files, patterns of them.

    ``column`` holds pictures or their paths in Parquet files, ``key_column`` their keys.

    Raises:
        InputError: there is nothing of that name, or a Parquet file without the columns.
    """
    found: list[Source] = []
    for name in names:
        if name == STDIN:
            found.append(ListFile(None))
            continue
        found += [
            _source(path, column=column, key_column=key_column, max_bytes=max_bytes) for path in _expand(name)
        ]
    return found


def total_of(sources: Iterable[Source]) -> int | None:
    """How many pictures there are, or None where a source does not know."""
    counts = [source.count() for source in sources]
    return None if None in counts else sum(filter(None, counts))


def _source(path: Path, *, column: str, key_column: str | None, max_bytes: int) -> Source:
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if _TAR.search(path.name):
        from service.bulk.tar import Tar

        return Tar(path, max_bytes=max_bytes)
    if path.suffix.lower() == ".parquet":
        require_pyarrow(path)
        from service.bulk.parquet import Parquet

        return Parquet(path, column=column, key_column=key_column)
    return ListFile(path) if path.suffix.lower() in _LISTS else File(path)


def _expand(name: str) -> Iterator[Path]:
    """Shards as WebDataset writes them, ``{000..012}``, and patterns with ``*``, ``?`` and ``[…]``."""
    if (numbers := _RANGE.search(name)) is not None:
        first, last = numbers.groups()
        for number in range(int(first), int(last) + 1):
            yield from _expand(f"{name[: numbers.start()]}{number:0{len(first)}}{name[numbers.end() :]}")
    elif glob.has_magic(name) and not Path(name).exists():
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (a pattern may begin at the root)
        if not matches:
            raise InputError(f"{name}: no file or folder has such a name")
        yield from map(Path, matches)
    else:
        yield Path(name)

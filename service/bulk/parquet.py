"""Pictures in a column of a Parquet file: as bytes, as paths, or as both, as ``datasets`` does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.errors import InputError, UnreadableError
from service.bulk.picture import Content, Picture, printable, unreadable

_ROWS_AT_ONCE = 8  # in memory: a picture may have megabytes


class Parquet:
    """One file. A key is ``file#row``, the path where the column holds paths, or what ``key_column`` says.

    Raises:
        InputError: it is no Parquet file, or has no such columns.
    """

    def __init__(self, path: Path, *, column: str, key_column: str | None) -> None:
        self._path = path
        self._column = column
        try:
            schema = pq.read_schema(path)
            self._rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from error
        for wanted, option in ((column, "--column"), (key_column, "--key-column")):
            if wanted is not None and wanted not in schema.names:
                raise InputError(
                    f"{path}: has no column {wanted!r} ({option}); it has {', '.join(schema.names) or 'none'}"
                )
        kind = schema.field(column).type
        if not (_is_bytes(kind) or _is_path(kind) or pa.types.is_struct(kind)):
            raise InputError(f"{path}: column {column!r} must hold bytes or paths, not {kind}")
        self._key_column = column if key_column is None and _is_path(kind) else key_column

    def pictures(self) -> Iterator[Picture]:
        """As ``Source.pictures``. Pictures that are not loaded are not read, but for whole row groups."""
        first = 0
        try:
            with pq.ParquetFile(self._path) as file:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    column = _Column(file, group, self._column)
                    for row, key in enumerate(self._keys(file, group, first, rows)):
                        yield Picture(key=key, load=partial(column.content, row))
                    first += rows
        except (pa.ArrowException, OSError) as error:
            yield unreadable(printable(self._path), f"the file cannot be read: {_first_line(error)}")

    def count(self) -> int:
        """As ``Source.count``."""
        return self._rows

    def _keys(self, file: pq.ParquetFile, group: int, first: int, rows: int) -> Iterator[str]:
        if self._key_column is None:
            name = printable(self._path)
            return (f"{name}#{row}" for row in range(first, first + rows))
        batches = file.iter_batches(row_groups=[group], columns=[self._key_column], use_threads=False)
        named = (value for batch in batches for value in batch.column(0).to_pylist())
        return (
            f"{printable(self._path)}#{first + row}" if value is None else str(value)
            for row, value in enumerate(named)
        )


class _Column:
    """The pictures of one row group; read forwards, and only as far as they are asked for."""

    def __init__(self, file: pq.ParquetFile, group: int, name: str) -> None:
        self._batches = file.iter_batches(
            batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[name], use_threads=False
        )
        self._values: list[Any] = []
        self._first = 0

    def content(self, row: int) -> Content:
        """The picture in row ``row`` of the group."""
        try:
            while row >= self._first + len(self._values):
                self._first += len(self._values)
                self._values = next(self._batches).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UnreadableError(f"it cannot be read from the file: {_first_line(error)}") from error
        return _content(self._values[row - self._first])


def _content(value: Any) -> Content:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return Path(value)
    raise UnreadableError("there is no picture in this row")


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_path(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

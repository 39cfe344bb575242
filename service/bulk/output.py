"""A Parquet file of embeddings that grows by whole parts, so that no moment is a bad one to be killed at.

While a job runs, ``x.parquet.parts/`` lies beside ``x.parquet``:

1. What is done is written every so often to ``writing`` and renamed to ``part-000017.parquet``. A rename
   happens or does not; what is in a part is done, everything else is not.
2. At the end all parts, after the rows that ``x.parquet`` may have had before, are written to ``writing``
   with the last part's number in its metadata, and this file is renamed to ``x.parquet``.
3. The folder is removed. Parts found later whose numbers are not above that of ``x.parquet`` are in it
   already, and are removed too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.bulk.errors import OutputError, writing

Kind = Literal["image", "text"]
Precision = Literal["float32", "float16"]

_LAST_PART = b"clipserve.last_part"
_COMMIT_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every row of a file has in common; two jobs may share a file only if they agree in all of it."""

    model: str
    digest: str
    dim: int
    precision: Precision = "float32"

    @property
    def schema(self) -> pa.Schema:
        """Columns key, kind and embedding, fixed_size_list<float>[dim]; model and digest as metadata."""
        number = pa.float32() if self.precision == "float32" else pa.float16()
        return pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("kind", pa.string(), nullable=False),
                pa.field("embedding", pa.list_(pa.field("element", number), self.dim), nullable=False),
            ],
            metadata={"clipserve.model": self.model, "clipserve.model_digest": self.digest},
        )


@dataclass
class _Rows:
    """Rows that are in no part yet."""

    keys: list[str] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    def as_table(self, schema: pa.Schema) -> pa.Table:
        vectors = schema.field("embedding").type
        numbers = pa.array(np.stack(self.features).ravel().astype(vectors.value_type.to_pandas_dtype()))
        embeddings = pa.FixedSizeListArray.from_arrays(numbers, type=vectors)
        return pa.table([pa.array(self.keys), pa.array(self.kinds), embeddings], schema=schema)


class Output:
    """``path``, and the parts that are to become it. Made by ``open_output``.

    ``rows`` are those of both, ``dim`` is what each embedding has.
    """

    def __init__(self, path: Path, layout: Layout, *, row_group: int) -> None:
        self.path = path
        self._schema = layout.schema
        self._row_group = row_group
        self._folder = parts_folder(path)
        self._writing = self._folder / "writing"
        self._rows = _Rows()
        self._committed_at = time.monotonic()
        merged = self._check()
        self._last = max([merged, *map(_number, self._parts())])
        self.dim = layout.dim
        self.rows = sum(pq.read_metadata(one).num_rows for one in self._files())

    def known(self) -> Iterator[tuple[str, str]]:
        """Kind and key of every row there is."""
        for path in self._files():
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["key", "kind"]):
                    yield from zip(
                        batch.column("kind").to_pylist(), batch.column("key").to_pylist(), strict=True
                    )

    def add(self, key: str, kind: Kind, features: NDArray[np.float32]) -> None:
        """A row, ``features`` float32 (D,). It is safe with the next part, within seconds."""
        self.rows += 1
        self._rows.keys.append(key)
        self._rows.kinds.append(kind)
        self._rows.features.append(features)
        is_due = time.monotonic() - self._committed_at >= _COMMIT_SECONDS
        if is_due or len(self._rows.keys) >= self._row_group:
            self.commit()

    def commit(self) -> None:
        """Make a part of what was added since the last one."""
        if self._rows.keys:
            self._last += 1
            table = self._rows.as_table(self._schema)
            self._write([table], self._schema, self._folder / f"part-{self._last:06}.parquet")
            self._rows = _Rows()
        self._committed_at = time.monotonic()

    def finish(self) -> None:
        """Make the parts one file."""
        self.commit()
        if self._parts() or not self.path.exists():
            metadata = self._schema.metadata | {_LAST_PART: str(self._last).encode()}
            schema = self._schema.with_metadata(metadata)
            self._write(self._regrouped(), schema, self.path)
        shutil.rmtree(self._folder)

    def _check(self) -> int:
        """The last part that is in the file already; parts up to it are removed."""
        merged = 0
        if self.path.exists():
            found = _schema(self.path)
            self._compare(found, self.path)
            merged = int((found.metadata or {}).get(_LAST_PART, b"0"))
        for part in self._parts():
            if _number(part) <= merged:
                part.unlink()
            else:
                self._compare(_schema(part), part.parent)
        return merged

    def _compare(self, found: pa.Schema, place: Path) -> None:
        ours, theirs = _description(self._schema), _description(found)
        if ours != theirs:
            raise OutputError(
                f"{place} holds {theirs}, not {ours}; choose another --out, or replace it with --overwrite"
            )

    def _files(self) -> Iterator[Path]:
        if self.path.exists():
            yield self.path
        yield from self._parts()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

    def _regrouped(self) -> Iterator[pa.Table]:
        """All rows in tables of ``row_group`` rows, but for the last."""
        held = self._schema.empty_table()
        for path in self._files():
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, use_threads=False).cast(self._schema)
                    held = pa.concat_tables([held, rows])
                    while held.num_rows >= self._row_group:
                        yield held.slice(0, self._row_group)
                        held = held.slice(self._row_group)
        if held.num_rows:
            yield held

    def _write(self, tables: Iterable[pa.Table], schema: pa.Schema, target: Path) -> None:
        """A row group a table; at ``target`` there is always either the file as it was or the new one."""
        with writing(target), self._writing.open("wb") as stream:
            # Embeddings are noise to a compressor, and a dictionary of them would be as large again.
            with pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=table.num_rows)
            stream.flush()
            os.fsync(stream.fileno())
            self._writing.replace(target)


@contextmanager
def open_output(path: Path, layout: Layout, *, row_group: int, overwrite: bool = False) -> Iterator[Output]:
    """Begin ``path``, or go on with it; one process at a time.

    Raises:
        OutputError: another process is at it, it holds something else, or the disk refuses.
    """
    folder = parts_folder(path)
    with writing(path):
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path} is being written by another process") from None
        if overwrite:
            for old in (*folder.glob("part-*.parquet"), path):
                old.unlink(missing_ok=True)
        try:
            yield Output(path, layout, row_group=row_group)
        finally:
            if folder.exists() and not any(folder.glob("part-*.parquet")):
                shutil.rmtree(folder)


def parts_folder(path: Path) -> Path:
    """Where the parts of ``path`` lie while a job runs."""
    return path.with_name(f"{path.name}.parts")


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise OutputError(
            f"{path} is no Parquet file; choose another --out, or replace it with --overwrite"
        ) from error


def _number(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


def _description(schema: pa.Schema) -> str:
    """Equal for files that one job may go on with."""
    metadata = schema.metadata or {}
    if b"clipserve.model" not in metadata or schema.names != ["key", "kind", "embedding"]:
        return "something else"
    model, digest = (metadata[name].decode() for name in (b"clipserve.model", b"clipserve.model_digest"))
    return f"embeddings of {model} ({digest[:16]}) as {schema.field('embedding').type}"

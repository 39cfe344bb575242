"""The file of pictures that could not be embedded, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

from service.bulk.errors import OutputError, writing


class Failures:
    """Lines ``{"key": …, "reason": …}``, written as they come. Without any the file is not made.

    A line that was cut off when its process was killed is dropped: that picture is tried again.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        self.path = path
        if anew:
            path.unlink(missing_ok=True)
        self.count = sum(1 for _ in self.known())
        self._stream: BinaryIO | None = None
        if path.exists():
            with writing(path), path.open("rb+") as stream:
                stream.truncate(self._whole)

    def known(self) -> Iterator[str]:
        """The pictures that are in the file.

        Raises:
            OutputError: it is some other file.
        """
        self._whole = 0
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    key = orjson.loads(line)["key"]
                except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                    raise OutputError(f"{self.path}: line {number} is not what was written there") from error
                self._whole += len(line)
                yield key

    def add(self, key: str, reason: str) -> None:
        """Write a line, at once."""
        with writing(self.path):
            if self._stream is None:
                self._stream = self.path.open("ab")
            self._stream.write(orjson.dumps({"key": key, "reason": reason}, option=orjson.OPT_APPEND_NEWLINE))
            self._stream.flush()
        self.count += 1

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Failures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

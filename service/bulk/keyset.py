"""Which inputs are done, for any number of them in a few megabytes of memory."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b


class KeySet:
    """Keys that have been met. Beyond SQLite's small cache they lie in a temporary file, which it removes."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE keys (hash BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, kind: str, key: str) -> bool:
        """Whether the key is new, which from now on it is not."""
        digest = blake2b(f"{kind}\0{key}".encode(), digest_size=16).digest()
        return self._database.execute("INSERT OR IGNORE INTO keys VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        """Forget all."""
        self._database.close()

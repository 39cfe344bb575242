"""API keys: made here, kept as hashes, told apart in constant time.

A key is 32 random bytes, so a single SHA-256 keeps it: slow hashes are for secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")
_HASHED = "sha256:"
_LOG = logging.getLogger("clipserve")
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Key:
    """Whose key it is, and its SHA-256."""

    name: str
    digest: bytes
    is_admin: bool = False


def new_key(name: str) -> tuple[str, str]:
    """A fresh key for ``name``, and the entry ``name:sha256`` that a server knows it by.

    Raises:
        ValueError: the name is not plain.
    """
    secret = f"clipserve_{secrets.token_urlsafe(32)}"
    entry = f"{name}:{_digest(secret.encode()).hex()}"
    parse_entries([entry])
    return secret, entry


def parse_entries(entries: Iterable[str]) -> tuple[Key, ...]:
    """Keys from entries ``name:sha256``.

    Raises:
        ValueError: an entry is of another form, or a name occurs twice.
    """
    keys: dict[str, Key] = {}
    for place, entry in enumerate(entries):
        name, _, digest = entry.partition(":")
        if not _NAME.fullmatch(name) or not _HEX.fullmatch(digest):
            raise ValueError(
                f"entry {place} is not NAME:SHA256 in hexadecimal, with a name of 1 to 64 A-Z a-z 0-9 . _ -;"
                " clipserve keys new NAME makes one"
            )
        if name in keys:
            raise ValueError(f"entry {place}: the name {name!r} is given twice")
        keys[name] = Key(name, bytes.fromhex(digest))
    return tuple(keys.values())


def read_entries(path: Path) -> list[str]:
    """The entries of a file, one a line; empty lines and those that begin with ``#`` are left out.

    Raises:
        ValueError: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({getattr(error, 'strerror', 'no text')})") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise ValueError(f"{path} has no key")
    return entries


def parse_admin_key(given: str) -> Key:
    """The admin key, given as it is or as ``sha256:`` and its hash.

    Raises:
        ValueError: what follows ``sha256:`` is no hash.
    """
    if not given.startswith(_HASHED):
        return Key("admin", _digest(given.encode()), is_admin=True)
    if not _HEX.fullmatch(given.removeprefix(_HASHED)):
        raise ValueError("after sha256: there must be 64 hexadecimal digits")
    return Key("admin", bytes.fromhex(given.removeprefix(_HASHED)), is_admin=True)


class WatchedKeys:
    """Keys that may change while the server runs: read again, a second after their file has changed.

    A file that is wrong, empty or gone changes nothing but the log: nobody loses access by a slip of the pen,
    and nobody gains it.
    """

    def __init__(self, read: Callable[[], tuple[Key, ...]], file: Path | None) -> None:
        self._read = read
        self._file = file
        self._seen = _state(file)
        self._keys = read()
        self._next_look = 0.0

    def current(self) -> tuple[Key, ...]:
        """The keys that count now; the same object until they change."""
        if self._file is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            if (state := _state(self._file)) != self._seen:
                self._seen = state
                self._read_again()
        return self._keys

    def _read_again(self) -> None:
        try:
            self._keys = self._read()
        except ValueError as error:
            _LOG.error("API_KEYS_FILE has changed and the keys stay as they were: %s", error)
        else:
            _LOG.info("API keys read again", extra={"keys": [key.name for key in self._keys]})


@dataclass(frozen=True)
class KeyRing:
    """Every key of a server."""

    keys: tuple[Key, ...] = ()

    def find(self, secret: bytes) -> Key | None:
        """Whose key ``secret`` is; takes as long whichever it is, and if it is none."""
        digest = _digest(secret)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _state(file: Path | None) -> tuple[int, ...] | None:
    """What changes when a file does, or what its name leads to."""
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_dev, found.st_ino)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()

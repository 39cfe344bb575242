"""API keys: made here, kept as hashes, told apart in constant time.

A key is 32 random bytes, so a single SHA-256 keeps it: slow hashes are for secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")
_HASHED = "sha256:"


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
        ValueError: it cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({getattr(error, 'strerror', 'no text')})") from error
    return [line for line in lines if line and not line.startswith("#")]


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


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()

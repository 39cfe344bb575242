"""Keys are random, kept as hashes, and only whole ones fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.keys import Key, KeyRing, new_key, parse_admin_key, parse_entries, read_entries


def test_a_new_key_fits_its_entry_and_is_not_in_it() -> None:
    secret, entry = new_key("web-shop")
    (key,) = parse_entries([entry])
    assert key.name == "web-shop"
    assert entry == f"web-shop:{hashlib.sha256(secret.encode()).hexdigest()}"
    assert KeyRing((key,)).find(secret.encode()) == key
    assert secret not in entry


def test_no_two_keys_are_the_same() -> None:
    keys = {new_key("a")[0] for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 43  # 32 random bytes in base64


def test_each_key_is_its_holders_and_nearly_is_not_enough() -> None:
    made = {name: new_key(name) for name in ("a", "b", "c")}
    ring = KeyRing(parse_entries(entry for _, entry in made.values()))
    for name, (secret, entry) in made.items():
        found = ring.find(secret.encode())
        assert found is not None
        assert found.name == name
        digest = entry.partition(":")[2]
        for wrong in (secret[:-1], secret + "x", secret.upper(), digest, entry, "", "ä"):
            assert ring.find(wrong.encode()) is None
    assert KeyRing().find(b"") is None


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "a:b", "ä", "a\n"])
def test_a_name_must_be_plain(name: str) -> None:
    with pytest.raises(ValueError, match=r"entry 0 is not NAME:SHA256"):
        new_key(name)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64])
def test_a_hash_must_be_one(digest: str) -> None:
    with pytest.raises(ValueError, match="entry 1 is not NAME:SHA256"):
        parse_entries([new_key("a")[1], f"b:{digest}"])


def test_a_refusal_does_not_repeat_what_might_be_a_key() -> None:
    secret, _ = new_key("a")
    with pytest.raises(ValueError, match="entry 0") as refusal:
        parse_entries([secret])
    assert secret not in str(refusal.value)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="entry 1: the name 'a' is given twice"):
        parse_entries([new_key("a")[1], new_key("a")[1]])


def test_a_file_has_an_entry_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the shop\n\n  a:1  \nb:2\n")
    assert read_entries(file) == ["a:1", "b:2"]
    with pytest.raises(ValueError, match="cannot be read"):
        read_entries(tmp_path / "none")


def test_an_admin_key_is_given_plain_or_hashed() -> None:
    plain = parse_admin_key("correct horse battery")
    assert plain == Key("admin", hashlib.sha256(b"correct horse battery").digest(), is_admin=True)
    assert parse_admin_key(f"sha256:{plain.digest.hex()}") == plain
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        parse_admin_key("sha256:correct horse battery")

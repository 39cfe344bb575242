"""Settings of access and of fetching: what is accepted, and what stops the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.keys import KeyRing, new_key, parse_entries
from service.settings import Settings

_, SHOP = new_key("shop")
_, BLOG = new_key("blog")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CLIPSERVE_{name.upper()}", raising=False)


def settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"CLIPSERVE_{name.upper()}", value)
    return Settings()


def test_by_default_nothing_is_fetched_and_no_key_is_needed() -> None:
    given = Settings()
    assert given.urls == given.cors_origins == given.read_keys() == ()
    assert given.read_admin_key() is given.metrics_port is None
    assert given.rate_limit == 0


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("off", ()),
        ("on", ("*",)),
        (" ON ", ("*",)),
        ("A.com, *.b.com", ("a.com", "*.b.com")),
    ],
)
def test_urls_are_off_on_or_hosts(monkeypatch: pytest.MonkeyPatch, text: str, hosts: tuple[str, ...]) -> None:
    assert settings(monkeypatch, urls=text).urls == hosts


def test_keys_come_from_the_variable_and_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(BLOG)
    given = settings(monkeypatch, api_keys=SHOP, api_keys_file=str(tmp_path / "keys"), rate_limit="2.5")
    assert [key.name for key in given.read_keys()] == ["shop", "blog"]
    assert given.rate_limit == 2.5


@pytest.mark.parametrize(
    ("name", "says", "values"),
    [
        ("urls", "must be off, on, or host names", {"urls": "true"}),
        ("urls", "must be off, on, or host names", {"urls": ""}),
        ("urls", "must be off, on, or host names", {"urls": "on,a.com"}),
        ("urls", "must be off, on, or host names", {"urls": "https://a.com"}),
        ("urls", "must be off, on, or host names", {"urls": "a.com,*"}),
        ("url_ports", "from 1 to 65535", {"url_ports": "0"}),
        ("url_ports", "from 1 to 65535", {"url_ports": ","}),
        ("url_timeout", "greater than 0", {"url_timeout": "0"}),
        ("url_concurrency", "greater than or equal to 1", {"url_concurrency": "0"}),
        ("api_keys", "entry 0 is not NAME:SHA256", {"api_keys": "secret"}),
        ("api_keys", "given twice", {"api_keys": f"{SHOP},{SHOP}"}),
        ("api_keys_file", "cannot be read", {"api_keys_file": "no/such/file"}),
        ("api_keys_file", "has no key", {"api_keys_file": os.devnull}),
        ("admin_key", "64 hexadecimal digits", {"admin_key": "sha256:0123456789"}),
        ("admin_key", "at least 16", {"admin_key": "short"}),
        ("rate_limit", "needs API keys", {"rate_limit": "5"}),
        ("metrics_access", "needs API keys", {"metrics_access": "key"}),
        ("metrics_port", "takes no keys", {"api_keys": SHOP, "metrics_access": "key", "metrics_port": "9"}),
        ("cors_origins", "origins such as", {"cors_origins": "https://a.com/path"}),
        ("cors_origins", "origins such as", {"cors_origins": "a.com"}),
    ],
)
def test_a_setting_that_would_not_do_what_it_says_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, says: str, values: dict[str, str]
) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(monkeypatch, **values)
    assert refusal.value.errors()[0]["loc"] == (name,)
    assert says in str(refusal.value)


def test_the_command_makes_a_key_that_fits_its_entry() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "service", "keys", "new", "shop"], capture_output=True, text=True, check=True
    )
    secret, entry = made.stdout.split()
    found = KeyRing(parse_entries([entry])).find(secret.encode())
    assert found is not None
    assert found.name == "shop"


def test_the_command_refuses_a_name_that_is_not_plain() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "service", "keys", "new", "a b"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert "1 to 64" in made.stderr
    assert made.stdout == ""

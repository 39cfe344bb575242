"""``clipserve warm``: what the first start would build is there already."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import UnknownModelError
from service.cli import app
from service.registry import registry_of
from service.settings import Settings
from tests.toy_models import write_toy_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_toy_model(tmp_path / "models")
    for name, value in {"HOME": tmp_path, "PROVIDER": "cpu", "INFERENCE_THREADS": 1}.items():
        monkeypatch.setenv(f"CLIPSERVE_{name}", str(value))
    return tmp_path


def built(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (home / "cache").rglob("*") if path.is_file()}


def test_a_warmed_model_is_loaded_without_building_anything(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = CliRunner().invoke(app, ["warm", "toy"])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("toy: ")
    before = built(home)
    assert before
    caplog.set_level(logging.INFO)
    model = registry_of(Settings()).load("toy")
    model.close()
    assert f"{model.image.runtime} on cpu in {model.image.precision}" in told.stdout
    assert built(home) == before
    assert "first load on this machine" not in caplog.text


def test_an_unknown_model_is_named(home: Path) -> None:
    told = CliRunner().invoke(app, ["warm", "toy", "nothing"])
    assert isinstance(told.exception, UnknownModelError)
    assert "'nothing'" in str(told.exception)

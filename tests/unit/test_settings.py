"""Settings: every value comes from ``CLIPSERVE_*``, and a wrong one names its variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, unknown_variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CLIPSERVE_{name.upper()}", raising=False)


def test_the_documented_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.models == ("shapes",)
    assert settings.models_folder == Path.home() / ".clipserve" / "models"
    assert settings.classifiers_folder == Path.home() / ".clipserve" / "classifiers"


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PORT": "9000",
        "MODELS": "vit-b-32, shapes ,",
        "HOME": "~/elsewhere",
        "MAX_BATCH": "64",
        "EXIF_ORIENTATION": "false",
    }.items():
        monkeypatch.setenv(f"CLIPSERVE_{name}", value)
    settings = Settings()
    assert settings.port == 9000
    assert settings.models == ("vit-b-32", "shapes")
    assert settings.models_folder == Path.home() / "elsewhere" / "models"
    assert settings.max_batch == 64
    assert settings.exif_orientation is False


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSERVE_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_folders_of_their_own_win_over_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPSERVE_HOME", str(tmp_path))
    monkeypatch.setenv("CLIPSERVE_MODELS_DIR", "~/models")
    settings = Settings()
    assert settings.models_folder == Path.home() / "models"
    assert settings.classifiers_folder == tmp_path / "classifiers"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("port", "65536", "less than or equal to 65535"),
        ("port", "http", "integer"),
        ("models", " , ", "at least one model"),
        ("max_batch", "0", "greater than or equal to 1"),
        ("request_timeout", "0", "greater than 0"),
        ("provider", "tpu", "'auto', 'cpu'"),
        ("log_format", "xml", "'json' or 'text'"),
        ("max_body_bytes", "-1", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_names_field_and_limit(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"CLIPSERVE_{name.upper()}", value)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    assert [error["loc"] for error in refusal.value.errors()] == [(name,)]
    assert says in str(refusal.value)


def test_variables_that_are_no_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSERVE_PORT", "9000")
    assert unknown_variables() == {}
    monkeypatch.setenv("CLIPSERVE_MAX_QUEU", "9")
    monkeypatch.setenv("CLIPSERVE_COLOUR_OF_THE_SKY", "blue")
    assert unknown_variables() == {
        "CLIPSERVE_COLOUR_OF_THE_SKY": None,
        "CLIPSERVE_MAX_QUEU": "CLIPSERVE_MAX_QUEUE",
    }


def test_every_setting_explains_itself() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_workers_share_the_cores_unless_threads_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.available_cores", lambda: 12)
    share = Settings(workers=5, decode_threads=7).of_one_worker()
    assert (share.inference_threads, share.decode_threads) == (2, 7)
    assert Settings(workers=50).of_one_worker().inference_threads == 1


def test_fronts_share_the_cores_for_decoding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.available_cores", lambda: 12)
    share = Settings(workers=5, shared_engine=True).of_one_worker()
    assert (share.inference_threads, share.decode_threads) == (0, 2)


def test_an_engine_process_needs_memory_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    assert Settings(shared_engine=False).shared_engine is False
    with pytest.raises(ValidationError, match="needs Linux"):
        Settings(shared_engine=True)


def test_gpus_are_numbers() -> None:
    assert Settings(devices="0, 2").runtime_options().devices == (0, 2)  # type: ignore[arg-type]
    for wrong in ("", "-1", "cuda"):
        with pytest.raises(ValidationError, match="devices"):
            Settings(devices=wrong)  # type: ignore[arg-type]

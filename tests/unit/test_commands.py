"""What commands say on a terminal: names as they are, and of a user's mistake one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prompts.store import DirectoryStore
from service.cli import app, main
from tests.pictures import png


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": tmp_path, "RUNTIME": "onnxruntime", "PROVIDER": "cpu"}.items():
        monkeypatch.setenv(f"CLIPSERVE_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def sorted_pictures(tmp_path: Path) -> Path:
    for name in ("red_circle", "blue_star"):
        (tmp_path / "sorted" / name).mkdir(parents=True)
        (tmp_path / "sorted" / name / "0.png").write_bytes(png())
    return tmp_path / "sorted"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    good, bad = tmp_path / "[red]x.png", tmp_path / "[dim]y.png"
    good.write_bytes(png())
    bad.write_bytes(b"")
    done = run("classify", good, bad, "-l", "[bold]cat", "-l", "[/]")
    assert done.exit_code == 1, done.exception
    for shown in ("[red]x.png", "[dim]y.png", "[bold]cat", " [/] ", "0 bytes"):
        assert shown in done.output
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "model.json").write_text("{")
    for options in ((), ("--json",)):
        listed = run("models", "list", *options)
        assert "shapes" in listed.stdout
        assert "model.json" in listed.stderr


def test_a_template_set_of_any_name_is_shown(tmp_path: Path, sorted_pictures: Path) -> None:
    own = tmp_path / "[mine].json"
    own.write_text('{"templates": ["a {label}"]}')
    done = run("eval", sorted_pictures, "--templates", own)
    assert done.exit_code == 0, done.exception
    assert "[mine]" in done.output


def test_eval_takes_no_larger_files_than_the_server(
    monkeypatch: pytest.MonkeyPatch, sorted_pictures: Path
) -> None:
    (sorted_pictures / "red_circle" / "1.png").write_bytes(png() + bytes(100))
    monkeypatch.setenv("CLIPSERVE_MAX_IMAGE_BYTES", str(len(png())))
    done = run("eval", sorted_pictures, "--template-set", "photo")
    assert f"left out: red_circle/1.png: it has {len(png()) + 100} bytes" in done.stderr


def test_labels_are_read_from_a_file_of_utf8(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffcat\n\n caf\u00e9 \n".encode())
    assert run("classifiers", "build", "pets", "--labels", labels).exit_code == 0
    stored = DirectoryStore(tmp_path / "classifiers").get("pets")
    assert [label.name for label in stored.labels] == ["cat", "caf\u00e9"]


@pytest.mark.parametrize(
    ("name", "content", "says"), [("none.txt", None, "does not exist"), ("latin.txt", b"\xe9", "UTF-8")]
)
def test_labels_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run("classifiers", "build", "pets", "--labels", tmp_path / name)
    assert done.exit_code == 2
    assert name in done.output
    assert says in done.output


@pytest.mark.parametrize("option", ["--report", "--json"])
def test_a_full_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sorted_pictures: Path, option: str
) -> None:
    arguments = ["eval", str(sorted_pictures), "--template-set", "photo", option, "/dev/full"]
    monkeypatch.setattr(sys, "argv", ["clipserve", *arguments])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "clipserve: No space left on device" in capsys.readouterr().err


def test_serve_takes_an_engine_process_for_one_worker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr("service.workers.run_workers", lambda settings: given.append(settings) or 0)
    monkeypatch.setattr("service.logs.configure_logging", lambda **_: None)  # which would outlive the test
    assert run("serve", "--shared-engine").exit_code == 0
    assert run("serve", "--workers", 3).exit_code == 0
    assert [(one.workers, one.shared_engine) for one in given] == [(1, True), (3, False)]

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from models.errors import ExportError
from models.staging import staged


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with staged(tmp_path / "models" / "new") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "models" / "new").exists()
        assert (
            folder.relative_to(tmp_path / "models").parts[0].startswith(".")
        )  # the registry looks elsewhere
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["new"]
    assert (tmp_path / "models" / "new" / "file").read_text() == "x"
    mode = (tmp_path / "models" / "new").stat().st_mode
    assert mode & 0o055  # the server may run as another user


@pytest.mark.parametrize("trouble", [RuntimeError("stop"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, trouble: BaseException) -> None:
    def fail() -> None:
        with staged(tmp_path / "new") as folder:
            (folder / "file").write_text("x")
            raise trouble

    with pytest.raises(type(trouble)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_the_old_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")

    def fill() -> None:
        with staged(tmp_path / "model", overwrite=True):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ExportError, match="model could not be written: the disk is full"):
        fill()
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_existing_folder_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")
    with (
        pytest.raises(ExportError, match="model exists; remove it"),
        staged(tmp_path / "model"),
    ):
        pytest.fail("must not begin")
    with staged(tmp_path / "model", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".staged") and target == tmp_path / "model" and self.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(ExportError, match="Input/output error"), staged(tmp_path / "model", overwrite=True):
        pass
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(ExportError, match="model could not be written: "),
        staged(tmp_path / "file" / "model"),
    ):
        pytest.fail("must not begin")

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prompts.errors import LabelError
from service.evaluation.errors import FolderError
from service.evaluation.folder import read_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; what is a picture is told by the name alone."""
    for file in (
        "tabby_cat/b.jpg",
        "tabby_cat/a.PNG",
        "tabby_cat/notes.txt",
        "dog/deep/down/c.webp",
        ".x/d.png",
    ):
        place = tmp_path / "pets" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (tmp_path / "pets" / "loose.jpg").touch()
    return tmp_path / "pets"


def labels_file(folder: Path, content: object) -> Path:
    file = folder.parent / "labels.json"
    file.write_text(json.dumps(content))
    return file


def test_labels_are_the_names_of_folders(folder: Path) -> None:
    found = read_folder(folder)
    assert found.labels == ("dog", "tabby cat")
    assert [path.as_posix() for path in found.paths] == [
        "dog/deep/down/c.webp",
        "tabby_cat/a.PNG",
        "tabby_cat/b.jpg",
    ]
    assert found.truth.tolist() == [0, 1, 1]


def test_labels_may_come_from_a_file(folder: Path) -> None:
    found = read_folder(folder, labels_file(folder, {"tabby_cat": "cat", "bird": "a bird", "dog": "puppy"}))
    assert found.labels == ("cat", "a bird", "puppy")
    assert found.truth.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"dog": "dog"}, FolderError, "has no label for the folder 'tabby_cat'"),
        ({"dog": "pet", "tabby_cat": "pet"}, LabelError, r"labels\[1\]: 'pet' is the same"),
        ({"dog": " ", "tabby_cat": "cat"}, LabelError, r"labels\[0\]: is blank"),
        ({"dog": 5, "tabby_cat": "cat"}, FolderError, "labels.json: dog: .*string"),
        (["dog"], FolderError, "labels.json: the file: "),
    ],
)
def test_a_wrong_file_is_named(folder: Path, content: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        read_folder(folder, labels_file(folder, content))


def test_folders_of_no_use_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="pets/dog: has 1 sub-folders"):
        read_folder(folder / "dog")
    with pytest.raises(FolderError, match="nowhere: cannot be read"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FolderError, match=r"labels\.json: cannot be read"):
        read_folder(folder, tmp_path / "labels.json")
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(FolderError, match="empty: no pictures"):
        read_folder(tmp_path / "empty")

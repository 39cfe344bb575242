"""A folder of pictures that are sorted already: one sub-folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.preprocess import SUFFIXES
from prompts.labels import Label, check_labels
from service.evaluation.errors import FolderError

_LABELS = TypeAdapter(dict[str, str])


@dataclass(frozen=True, kw_only=True, eq=False)
class SortedPictures:
    """``paths[i]``, relative to ``folder``, shows ``labels[truth[i]]``; ``truth`` is intp (N,)."""

    folder: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    truth: NDArray[np.intp]


def read_folder(folder: Path, labels_file: Path | None = None, *, max_length: int = 4096) -> SortedPictures:
    """Find the classes of a folder and their pictures, however deep these lie.

    A label is its folder's name with spaces for underscores, or what ``labels_file`` says: a JSON object from
    folder to label. What the file names beyond the folders there are can be answered too, and is always
    wrong. ``max_length`` counts the characters of a label.

    Raises:
        FolderError: there are no sub-folders or no pictures, or the file does not name every sub-folder.
        LabelError: a label is blank, too long, or that of two folders.
    """
    try:
        classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise FolderError(f"{folder}: cannot be read ({error.strerror})") from error
    names = [entry.name for entry in classes]
    label_of = {name: name.replace("_", " ") for name in names}
    if labels_file is not None:
        label_of = _read_labels(labels_file, names)
    if not names or len(label_of) < 2:
        raise FolderError(f"{folder}: has {len(names)} sub-folders; one a class is needed, and two classes")
    check_labels([Label(one) for one in label_of.values()], max_labels=len(label_of), max_length=max_length)
    places = {name: place for place, name in enumerate(label_of)}
    found = [(path.relative_to(folder), places[entry.name]) for entry in classes for path in _pictures(entry)]
    if not found:
        raise FolderError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) in its sub-folders")
    return SortedPictures(
        folder=folder,
        labels=tuple(label_of.values()),
        paths=tuple(path for path, _ in found),
        truth=np.array([place for _, place in found], np.intp),
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _read_labels(path: Path, names: list[str]) -> dict[str, str]:
    try:
        label_of = _LABELS.validate_json(path.read_bytes())
    except OSError as error:
        raise FolderError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FolderError(f"{path}: {field}: {first['msg']}") from error
    missing = [name for name in names if name not in label_of]
    if missing:
        raise FolderError(f"{path}: has no label for the folder {missing[0]!r} ({len(missing)} in all)")
    return label_of

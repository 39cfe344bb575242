"""The store: what was put is there after a restart, and one bad file spoils nothing else."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from prompts.errors import ClassifierNameError, EmbeddingError, StoreError, UnknownClassifierError
from prompts.labels import Label
from prompts.store import ClassifierStore, DirectoryStore, StoredClassifier, from_bytes, to_bytes
from prompts.templates import TemplateSet

TEMPLATES = TemplateSet(name="mine", templates=("a {label}", "ein {label}ü"), description="d", source="s")
LABELS = (Label("cat"), Label("dög", ("a puppy", "a dog's snout")), Label("line\nbreak"))
MATRIX = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def stored(name: str = "pets", **changes: object) -> StoredClassifier:
    facts = {
        "name": name,
        "labels": LABELS,
        "template_set": TEMPLATES,
        "model": "shapes",
        "model_digest": "ab" * 32,
        "created": "2025-01-02T03:04:05+00:00",
        "matrix": MATRIX,
    }
    return StoredClassifier(**{**facts, **changes})


def assert_same(one: StoredClassifier, other: StoredClassifier) -> None:
    for field in ("name", "labels", "template_set", "model", "model_digest", "created"):
        assert getattr(one, field) == getattr(other, field)
    if other.matrix is None:
        assert one.matrix is None
    else:
        assert one.matrix is not None
        assert one.matrix.dtype == np.float32
        np.testing.assert_array_equal(one.matrix, other.matrix)


@pytest.mark.parametrize("matrix", [MATRIX, np.asfortranarray(MATRIX), MATRIX[:1], None])
def test_bytes_and_back(matrix: np.ndarray | None):
    classifier = stored(matrix=matrix)
    back = from_bytes(to_bytes(classifier))
    assert_same(back, classifier)
    assert back.matrix is None or not back.matrix.flags.writeable


def test_every_damage_to_the_bytes_is_noticed():
    data = to_bytes(stored())
    for length in range(len(data)):
        with pytest.raises(StoreError):
            from_bytes(data[:length])
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(StoreError):
            from_bytes(bytes(damaged))


def test_bytes_of_another_version_are_refused():
    newer = to_bytes(stored()).replace(b'"version":1', b'"version":2')[:-32]
    with pytest.raises(StoreError, match="version"):
        from_bytes(newer + hashlib.sha256(newer).digest())


def test_progress_is_in_the_matrix():
    assert (stored(matrix=None).done, stored(matrix=None).complete) == (0, False)
    assert (stored(matrix=MATRIX[:2]).done, stored(matrix=MATRIX[:2]).complete) == (2, False)
    assert (stored().done, stored().complete) == (3, True)


@pytest.mark.parametrize("matrix", [MATRIX[0], MATRIX.astype(np.float64), np.vstack([MATRIX, MATRIX])])
def test_a_matrix_that_does_not_fit_is_refused(matrix: np.ndarray):
    with pytest.raises(EmbeddingError, match="matrix: "):
        stored(matrix=matrix)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64, "1..2", "pets.classifier", "a.partial"])
def test_plain_names_are_accepted(tmp_path: Path, name: str):
    DirectoryStore(tmp_path).put(stored(name))
    assert DirectoryStore(tmp_path).names() == (name,)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-a", "a/b", "../a", "a\\b", "a\n", "ä", "x" * 65]
)
def test_other_names_are_refused(name: str):
    with pytest.raises(ClassifierNameError, match="name: "):
        stored(name)


def test_a_restart_finds_everything(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    store: ClassifierStore = DirectoryStore(folder)
    assert store.names() == ()
    store.put(stored("pets"))
    store.put(stored("birds", matrix=None))
    again = DirectoryStore(folder)
    assert again.names() == ("birds", "pets")
    for name in again.names():
        assert_same(again.get(name), store.get(name))


def test_putting_replaces_and_deleting_removes(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    store.put(stored(model="old"))
    store.put(stored(model="new"))
    assert store.get("pets").model == "new"
    assert DirectoryStore(tmp_path).get("pets").model == "new"
    store.delete("pets")
    for each in (store, DirectoryStore(tmp_path)):
        with pytest.raises(UnknownClassifierError, match="'pets'"):
            each.get("pets")
    with pytest.raises(UnknownClassifierError):
        store.delete("pets")
    assert list(tmp_path.iterdir()) == []


def test_deleting_stays_inside_the_folder(tmp_path: Path):
    outside = tmp_path / "outside.classifier"
    outside.write_bytes(b"precious")
    with pytest.raises(UnknownClassifierError):
        DirectoryStore(tmp_path / "store").delete("../outside")
    assert outside.exists()


def test_a_build_goes_on_after_a_restart(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    store.put(stored(model="old"))
    store.put_partial(stored(model="new", matrix=MATRIX[:2]))
    again = DirectoryStore(tmp_path)
    assert again.get("pets").model == "old"
    assert again.partial_names() == ("pets",)
    checkpoint = again.get_partial("pets")
    assert checkpoint is not None
    assert (checkpoint.model, checkpoint.done) == ("new", 2)
    again.put(stored(model="new"))
    for each in (again, DirectoryStore(tmp_path)):
        assert each.get("pets").model == "new"
        assert each.get_partial("pets") is None


def test_deleting_ends_a_build(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    store.put_partial(stored(matrix=MATRIX[:1]))
    assert store.names() == ()
    store.delete("pets")
    assert DirectoryStore(tmp_path).partial_names() == ()


def test_half_a_classifier_is_not_put(tmp_path: Path):
    with pytest.raises(StoreError, match="'pets' has 2 of 3 labels"):
        DirectoryStore(tmp_path).put(stored(matrix=MATRIX[:2]))


def test_a_broken_file_is_reported_and_the_rest_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = DirectoryStore(tmp_path)
    for name in ("birds", "pets", "trees"):
        store.put(stored(name))
    path = tmp_path / "pets.classifier"
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "trees.classifier").rename(tmp_path / "cars.classifier")
    (tmp_path / "notes.txt").write_text("not a classifier")
    with caplog.at_level(logging.WARNING):
        again = DirectoryStore(tmp_path)
    assert again.names() == ("birds",)
    assert set(again.broken) == {"pets", "cars"}
    assert "holds 'trees'" in again.broken["cars"]
    assert "pets.classifier is skipped" in caplog.text
    with pytest.raises(StoreError, match=r"'pets' cannot be read: .*checksum"):
        again.get("pets")
    again.put(stored("pets"))
    again.delete("cars")
    assert again.broken == {}
    assert DirectoryStore(tmp_path).names() == ("birds", "pets")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = DirectoryStore(tmp_path)
    store.put(stored(model="old"))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"pets\.classifier: cannot be written \(No space left"):
        store.put(stored(model="new"))
    assert store.get("pets").model == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["pets.classifier"]
    assert DirectoryStore(tmp_path).get("pets").model == "old"


def test_a_crash_while_writing_leaves_nothing_that_is_read(tmp_path: Path):
    (tmp_path / ".pets.classifier.x1y2.tmp").write_bytes(to_bytes(stored())[:20])
    store = DirectoryStore(tmp_path)
    assert (store.names(), store.broken) == ((), {})


def test_a_folder_that_cannot_be_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: cannot be used"):
        DirectoryStore(tmp_path / "file")


def test_threads_may_share_it(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(8):
                store.put(stored(f"own-{number}", model=str(turn)))
                store.put(stored("shared", model=str(number)))
                assert store.get(f"own-{number}").model == str(turn)
                assert "shared" in store.names()
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert DirectoryStore(tmp_path).names() == ("own-0", "own-1", "own-2", "own-3", "shared")

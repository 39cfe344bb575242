"""Every kind of input gives every picture, under its key, with the embedding that it has alone."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from service.cli import app
from tests.apps import load_alone
from tests.bulk.jobs import failures, keys, rows
from tests.pictures import png, truncated_jpeg
from tests.toy_models import DIM, write_toy_model

OUT = Path("out.parquet")
FAILURES = Path("out.errors.jsonl")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with a toy model."""
    write_toy_model(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    settings = {"HOME": str(tmp_path), "MODELS": "toy", "RUNTIME": "onnxruntime", "PROVIDER": "cpu"}
    for name, value in (settings | {"INFERENCE_THREADS": "1", "MAX_BATCH": "4"}).items():
        monkeypatch.setenv(f"CLIPSERVE_{name}", value)
    return tmp_path


@pytest.fixture
def alone(home: Path) -> list[NDArray[np.float32]]:
    """The embeddings of ``png(0)``, ``png(1)``, …, each encoded by itself."""
    model = load_alone(home)
    return [model.encode_images([png(seed)])[0] for seed in range(10)]


def embed(*arguments: str, given: bytes | None = None) -> str:
    done = CliRunner().invoke(
        app, ["embed", "--out", str(OUT), *arguments], input=given, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def write_pictures(folder: Path, seeds: range) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.png" for seed in seeds]
    for path, seed in zip(paths, seeds, strict=True):
        path.write_bytes(png(seed))
    return paths


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def assert_rows(wanted: dict[str, NDArray[np.float32]]) -> None:
    found = rows(OUT)
    assert [key for key, _ in found] == list(wanted)
    for key, features in found:
        np.testing.assert_allclose(features, wanted[key], atol=1e-6)


def test_folders_are_searched_in_order_and_single_files_taken(alone: list[NDArray[np.float32]]) -> None:
    write_pictures(Path("photos/b"), range(2))
    write_pictures(Path("photos/a"), range(2, 4))
    write_pictures(Path("more"), range(4, 5))
    Path("photos/notes.txt").write_text("no picture")
    embed("photos", "more/4.png")
    names = ["photos/a/2.png", "photos/a/3.png", "photos/b/0.png", "photos/b/1.png", "more/4.png"]
    assert_rows(dict(zip(names, [alone[seed] for seed in (2, 3, 0, 1, 4)], strict=True)))


def test_a_folder_that_cannot_be_listed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(Path("photos/a"), range(1))
    write_pictures(Path("photos/b"), range(1, 2))
    listed = os.scandir

    def scandir(path: str | int) -> object:
        if path == "photos/a":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    embed("photos")
    assert keys(OUT) == ["photos/b/1.png"]
    assert failures(FAILURES) == {"photos/a": "it cannot be listed (Permission denied)"}


@pytest.mark.parametrize("from_stdin", [False, True])
def test_lists_name_a_path_a_line(alone: list[NDArray[np.float32]], from_stdin: bool) -> None:
    paths = write_pictures(Path("photos"), range(6))
    lines = "\n".join(
        map(str, [*paths[:3], "", *paths[2:]])
    ).encode()  # one blank, one twice, no last newline
    Path("paths.txt").write_bytes(lines)
    embed("-" if from_stdin else "paths.txt", given=lines if from_stdin else None)
    assert_rows({str(path): alone[seed] for seed, path in enumerate(paths)})


@pytest.mark.parametrize("named", ["shards/{08..10}.tar", "shards/*.tar"])
def test_shards_give_their_pictures(alone: list[NDArray[np.float32]], named: str) -> None:
    for number in range(3):
        members = {f"{n}.png": png(3 * number + n) for n in range(3)} | {"0.json": b"{}", "0.cls": b"7"}
        write_tar(Path(f"shards/{8 + number:02}.tar"), members)
    embed(named)
    assert_rows({f"shards/{8 + n // 3:02}.tar/{n % 3}.png": alone[n] for n in range(9)})


def test_compressed_shards_are_read(alone: list[NDArray[np.float32]]) -> None:
    write_tar(Path("shards/0.tar.gz"), {"a.png": png(0)}, "w:gz")
    write_tar(Path("shards/1.tgz"), {"a.png": png(1)}, "w:gz")
    embed("shards/0.tar.gz", "shards/1.tgz")
    assert_rows({"shards/0.tar.gz/a.png": alone[0], "shards/1.tgz/a.png": alone[1]})


def test_parquet_gives_bytes(alone: list[NDArray[np.float32]]) -> None:
    pictures = [png(seed) for seed in range(7)]
    table = pa.table({"id": [f"id-{seed}" for seed in range(7)], "jpg": pictures})
    pq.write_table(table, "in.parquet", row_group_size=3)
    embed("in.parquet", "--column", "jpg")
    assert_rows({f"in.parquet#{seed}": alone[seed] for seed in range(7)})
    OUT.unlink()
    embed("in.parquet", "--column", "jpg", "--key-column", "id")
    assert_rows({f"id-{seed}": alone[seed] for seed in range(7)})


def test_parquet_gives_paths(alone: list[NDArray[np.float32]]) -> None:
    paths = [str(path) for path in write_pictures(Path("photos"), range(3))]
    pq.write_table(pa.table({"path": paths}), "in.parquet")
    embed("in.parquet", "--column", "path")
    assert_rows({path: alone[seed] for seed, path in enumerate(paths)})


def test_parquet_as_datasets_writes_it(alone: list[NDArray[np.float32]]) -> None:
    path = str(write_pictures(Path("photos"), range(1, 2))[0])
    cells = [{"bytes": png(0), "path": "lost.png"}, {"bytes": None, "path": path}, None]
    pq.write_table(pa.table({"image": cells}), "in.parquet")
    embed("in.parquet")
    assert_rows({"in.parquet#0": alone[0], "in.parquet#1": alone[1]})
    assert failures(FAILURES) == {"in.parquet#2": "there is no picture in this row"}


def test_float16_row_groups_and_metadata(home: Path, alone: list[NDArray[np.float32]]) -> None:
    write_pictures(Path("photos"), range(10))
    embed("photos", "--precision", "float16", "--row-group", "4", "--text", "a cat")
    with pq.ParquetFile(OUT) as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 3]
        vectors = file.schema_arrow.field("embedding").type
        assert (vectors.value_type, vectors.list_size) == (pa.float16(), DIM)
        metadata = file.schema_arrow.metadata
    model = load_alone(home)
    assert metadata[b"clipserve.model"] == b"toy"
    assert metadata[b"clipserve.model_digest"].decode() == model.manifest.digest
    table = pq.read_table(OUT)
    assert table["kind"].to_pylist() == ["image"] * 10 + ["text"]
    found = [features for _, features in rows(OUT)]
    np.testing.assert_allclose(found, [*alone, model.encode_texts(["a cat"])[0]], atol=1e-3)


def test_bad_pictures_are_told_apart_and_not_tried_again(home: Path) -> None:
    write_pictures(Path("photos"), range(3))
    Path("photos/1.png").write_bytes(truncated_jpeg())
    Path("photos/2.png").write_bytes(b"")
    write_tar(Path("0.tar"), {"x.png": png(5), "y.png": png(6)})
    whole = Path("0.tar").read_bytes()
    Path("0.tar").write_bytes(whole[: 512 + -(-len(png(5)) // 512) * 512 + 100])  # in the second header
    Path("paths.txt").write_text("lost.png\nphotos")
    said = embed("photos", "0.tar", "paths.txt")
    assert keys(OUT) == ["photos/0.png", "0.tar/x.png"]
    found = failures(FAILURES)
    assert set(found) == {"photos/1.png", "photos/2.png", "0.tar", "lost.png", "photos"}
    assert "No such file" in found["lost.png"]
    assert found["photos"] == "it is no file"
    assert f"{len(found)} bad pictures in {FAILURES}" in said
    write_pictures(Path("photos"), range(3))
    embed("photos")
    assert failures(FAILURES) == found  # mended, and still not tried
    FAILURES.unlink()
    assert "2 of them new" in embed("photos")
    assert keys(OUT) == ["photos/0.png", "0.tar/x.png", "photos/1.png", "photos/2.png"]


@pytest.mark.parametrize("cut", [-1, 0, 100], ids=["within a picture", "behind it", "within the next header"])
def test_a_shard_that_was_cut_off_gives_what_is_there_and_is_named(cut: int) -> None:
    write_tar(Path("0.tar"), {"x.png": png(5), "y.png": png(6)})
    second = 512 + -(-len(png(5)) // 512) * 512
    Path("0.tar").write_bytes(Path("0.tar").read_bytes()[: second + cut if cut >= 0 else 512 + 20])
    Path("photos").mkdir()
    Path("photos/0.png").write_bytes(png(0))
    embed("0.tar", "photos")
    assert keys(OUT) == ["0.tar/x.png", "photos/0.png"][cut < 0 :]
    assert set(failures(FAILURES)) == {"0.tar", "0.tar/x.png"} if cut < 0 else {"0.tar"}


def test_a_picture_over_the_limit_of_bytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSERVE_MAX_IMAGE_BYTES", str(len(png(0)) + 100))
    write_pictures(Path("photos"), range(1))
    large = png(1, 400, 400)
    Path("photos/large.png").write_bytes(large)
    write_tar(Path("0.tar"), {"large.png": large})
    pq.write_table(pa.table({"image": [large]}), "in.parquet")
    embed("photos", "0.tar", "in.parquet")
    assert keys(OUT) == ["photos/0.png"]
    assert set(failures(FAILURES)) == {"photos/large.png", "0.tar/large.png", "in.parquet#0"}
    assert all("CLIPSERVE_MAX_IMAGE_BYTES" in reason for reason in failures(FAILURES).values())


def test_names_that_are_no_utf8_are_kept_readable(alone: list[NDArray[np.float32]]) -> None:
    Path("photos").mkdir()
    path = Path("photos").joinpath(b"\xff.png".decode("utf-8", "surrogateescape"))
    path.write_bytes(png(0))
    embed("photos")
    assert_rows({"photos/\\xff.png": alone[0]})


def test_what_is_new_is_added_and_nothing_is_embedded_twice(alone: list[NDArray[np.float32]]) -> None:
    write_pictures(Path("photos"), range(3))
    embed("photos", "photos/0.png", "--text", "a")
    write_pictures(Path("photos"), range(5))
    assert "3 of them new" in embed("photos", "--text", "a", "--text", "b")
    assert keys(OUT) == [*(f"photos/{n}.png" for n in range(3)), "a", "photos/3.png", "photos/4.png", "b"]
    before = OUT.read_bytes()
    assert "0 of them new" in embed("photos")
    assert OUT.read_bytes() == before
    embed("photos/1.png", "--overwrite")
    assert_rows({"photos/1.png": alone[1]})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["photos", "--precision", "float16"],
            "as fixed_size_list<element: float>[48], not embeddings of toy",
        ),
        (["photos", "--model", "other"], "embeddings of toy"),
        (["lost"], "lost: no such file or folder"),
        (["lost/*.tar"], "lost/*.tar: no file or folder has such a name"),
        (["empty"], "no pictures were found there"),
        (["in.parquet"], "in.parquet: has no column 'image' (--column); it has id, number"),
        (["in.parquet", "--column", "number"], "column 'number' must hold bytes or paths, not int64"),
        (["in.parquet", "--column", "id", "--key-column", "x"], "no column 'x' (--key-column)"),
        (["paths.parquet"], "paths.parquet: cannot be read as Parquet"),
        (["photos", "--out", "paths.parquet"], "paths.parquet is no Parquet file"),
        (["photos", "--out", "in.parquet"], "in.parquet holds something else"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(home: Path, arguments: list[str], says: str) -> None:
    write_toy_model(home / "models", name="other", seed=9)
    write_pictures(Path("photos"), range(1))
    Path("empty").mkdir()
    Path("paths.parquet").write_text("not at all")
    pq.write_table(pa.table({"id": ["a"], "number": [1]}), "in.parquet")
    embed("photos")
    before = OUT.read_bytes()
    done = CliRunner().invoke(app, ["embed", "--out", str(OUT), *arguments])
    assert done.exit_code == 1
    assert says in str(done.exception)
    assert OUT.read_bytes() == before
    assert not Path("out.parquet.parts").exists()


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bulk.errors.find_spec", lambda _: None)
    write_pictures(Path("photos"), range(1))
    done = CliRunner().invoke(app, ["embed", "photos"])
    assert "pip install 'clipserve[bulk]'" in str(done.exception)
    done = CliRunner().invoke(app, ["embed", "photos", "--out", "out.npy"])
    assert done.exit_code == 0, done.output
    assert np.load("out.npy").shape == (1, DIM)


def test_a_npy_has_every_input_or_is_not_written(alone: list[NDArray[np.float32]]) -> None:
    write_pictures(Path("photos"), range(2))
    assert CliRunner().invoke(app, ["embed", "photos", "--text", "a", "--out", "out.npy"]).exit_code == 0
    found = np.load("out.npy")
    assert found.shape == (3, DIM)
    np.testing.assert_allclose(found[:2], alone[:2], atol=1e-6)
    Path("photos/2.png").write_bytes(b"GIF89a")
    done = CliRunner().invoke(app, ["embed", "photos", "--out", "next.npy"])
    assert done.exit_code == 1
    assert "photos/2.png: " in done.output
    assert not Path("next.npy").exists()


def test_classify_takes_the_same_inputs() -> None:
    write_tar(Path("0.tar"), {"x.png": png(0), "y.png": b"nothing"})
    done = CliRunner().invoke(app, ["classify", "0.tar", "-l", "a", "-l", "b", "-o", "csv"])
    assert done.exit_code == 1
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        "picture",
        *["0.tar/x.png"] * 2,
        "0.tar/y.png",
    ]

"""Killed or stopped at any moment and started again: every picture exactly once, bad ones included."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import numpy as np
import pytest

from tests.apps import load_alone
from tests.bulk.jobs import Command, failures, keys, rows
from tests.pictures import png
from tests.server import running_server

GOOD, BAD = 20, 2

# Kills the process with -9 right before or after the nth call of a function that changes what is on disk.
DYING = """
import os, pathlib, signal

def dying(owner, name, turn, after):
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(0)
        if len(calls) == turn and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if len(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)

"""

# Keeps a process at work long enough to be met there, on any machine.
SLOW = """
import time
from models.preprocess import Preprocessor
real = Preprocessor.__call__
Preprocessor.__call__ = lambda self, data: (time.sleep(0.02), real(self, data))[1]
"""


def write_pictures(folder: Path, *, good: int = GOOD, bad: int = BAD) -> list[str]:
    """Keys of the good ones; the bad lie among them."""
    folder.joinpath("photos").mkdir()
    names = [f"photos/{number:03}.png" for number in range(good)]
    for seed, name in enumerate(names):
        folder.joinpath(name).write_bytes(png(seed))
    for number in range(bad):
        folder.joinpath(f"photos/{10 * number:03}-bad.png").write_bytes(b"no picture")
    return names


@contextmanager
def started(command: Command, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    process = command.start(*arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def wait_for_parts(process: subprocess.Popen[bytes], folder: Path, count: int) -> int:
    """Until there are so many, or the process has ended; how many there are."""
    end = time.monotonic() + 60
    while (there := len(list(folder.glob("out.parquet.parts/part-*.parquet")))) < count:
        if process.poll() is not None:
            break
        assert time.monotonic() < end
        time.sleep(0.001)
    return there


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("pathlib.Path, 'replace', 1, False", id="before the first part"),
        pytest.param("pathlib.Path, 'replace', 1, True", id="after the first part"),
        pytest.param("pathlib.Path, 'replace', 4, False", id="before the fourth part"),
        pytest.param("pathlib.Path, 'replace', 6, False", id="before the file"),
        pytest.param("pathlib.Path, 'replace', 6, True", id="after the file"),
        pytest.param("os, 'fsync', 6, True", id="after all rows were copied"),
        pytest.param("os, 'unlink', 3, True", id="while parts are removed"),
        pytest.param("os, 'rmdir', 1, False", id="after parts were removed"),
    ],
)
def test_killed_at_this_moment_it_goes_on(tmp_path: Path, moment: str) -> None:
    names = write_pictures(tmp_path)
    options = ("photos", "--out", "out.parquet", "--row-group", 4)
    dying = Command(folder=tmp_path, prologue=f"{DYING}\ndying({moment})")
    assert dying.run(*options)[0] == -signal.SIGKILL
    known = failures(tmp_path / "out.errors.jsonl") if (tmp_path / "out.errors.jsonl").exists() else {}
    status, said = Command(folder=tmp_path).run(*options)
    assert status == 0, said
    assert sorted(keys(tmp_path / "out.parquet")) == names
    found = failures(tmp_path / "out.errors.jsonl")
    assert len(found) == BAD
    assert known.items() <= found.items()
    assert not (tmp_path / "out.parquet.parts").exists()
    model = load_alone(tmp_path)
    for key, features in rows(tmp_path / "out.parquet"):
        alone = model.encode_images([(tmp_path / key).read_bytes()])[0]
        np.testing.assert_allclose(features, alone, atol=1e-6)


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    Command(folder=tmp_path).run("photos", "--out", "out.parquet")
    errors = tmp_path / "out.errors.jsonl"
    before = errors.read_bytes()
    errors.write_bytes(before[:-9])
    assert Command(folder=tmp_path).run("photos", "--out", "out.parquet")[0] == 0
    assert errors.read_bytes() == before


@pytest.mark.e2e
def test_killed_again_and_again_the_result_is_what_the_server_says(tmp_path: Path) -> None:
    names = write_pictures(tmp_path, good=400, bad=7)
    options = ("photos", "--out", "out.parquet", "--row-group", 5)
    command, random, parts, kills = Command(folder=tmp_path, prologue=SLOW), Random(7), 0, 0
    while not (tmp_path / "out.parquet").exists():
        with started(command, *options) as process:
            parts = wait_for_parts(process, tmp_path, parts + random.randint(1, 16))
            time.sleep(random.random() * 0.05)
            kills += process.poll() is None
    assert kills >= 5
    status, said = command.run(*options)
    assert status == 0, said
    print(f"killed {kills} times")
    found = dict(rows(tmp_path / "out.parquet"))
    assert sorted(keys(tmp_path / "out.parquet")) == names
    assert len(failures(tmp_path / "out.errors.jsonl")) == 7
    with running_server(tmp_path) as server, httpx.Client(base_url=server.url()) as client:
        for name in names[::7]:
            headers = {"content-type": "image/png", "accept": "application/x-npy"}
            answer = client.post("/embed", content=(tmp_path / name).read_bytes(), headers=headers)
            features = np.frombuffer(answer.content[-4 * len(found[name]) :], "<f4")
            np.testing.assert_allclose(found[name], features, atol=1e-6)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_writes_what_it_has_and_says_how_to_go_on(
    tmp_path: Path, asked: signal.Signals
) -> None:
    names = write_pictures(tmp_path, good=300)
    options = ("photos", "--out", "out.parquet", "--row-group", 10)
    with started(Command(folder=tmp_path, prologue=SLOW), *options) as process:
        wait_for_parts(process, tmp_path, 1)
        process.send_signal(asked)
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 128 + asked, said
    assert "Start the same command again to go on." in said
    assert not (tmp_path / "out.parquet").exists()
    kept = [key for part in (tmp_path / "out.parquet.parts").glob("part-*.parquet") for key in keys(part)]
    assert f"{len(kept)} embeddings are kept" in said
    assert 10 <= len(kept) < 300
    status, said = Command(folder=tmp_path).run(*options)
    assert status == 0, said
    assert f"300 embeddings of 48 numbers in out.parquet, {300 - len(kept)} of them new" in said
    assert sorted(keys(tmp_path / "out.parquet")) == names


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    write_pictures(tmp_path, good=1500)
    options = ("photos", "--out", "out.parquet", "--row-group", 10)
    with started(Command(folder=tmp_path, prologue=SLOW), *options) as process:
        wait_for_parts(process, tmp_path, 1)
        status, said = Command(folder=tmp_path).run(*options)
        assert (status, process.poll()) == (1, None)
    assert "out.parquet is being written by another process" in said

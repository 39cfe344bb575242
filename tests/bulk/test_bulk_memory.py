"""Memory does not grow with the number of pictures."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from tests.bulk.jobs import Command, keys
from tests.pictures import png
from tests.soak.vitals import Vitals

_SHARD = 10_000


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_200_000_pictures(tmp_path: Path) -> None:
    for number in range(10):
        _write_shard(tmp_path / f"{number}.tar")
        _write_folder(tmp_path / "photos" / str(number))
    arguments = ("{0..9}.tar", "photos", "--out", "out.parquet", "--row-group", 5_000)
    process = Command(folder=tmp_path).start(*arguments)
    try:
        memory, began = [], time.monotonic()
        while process.poll() is None:
            try:
                memory.append(Vitals.of(process.pid).memory / 1e6)
            except (KeyError, FileNotFoundError, ProcessLookupError):
                break  # it has ended meanwhile
            time.sleep(0.2)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 0, said
    early, late = (
        max(some) for some in (memory[len(memory) // 10 : len(memory) // 4], memory[len(memory) // 4 :])
    )
    print(f"{time.monotonic() - began:.0f} s; {early:.0f} MB in the first quarter, {late:.0f} MB after it")
    found = keys(tmp_path / "out.parquet")
    assert len(found) == len(set(found)) == 200_000
    assert late < early + 32


def _write_shard(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(_SHARD):
            data = png(number % 7, 8, 8)
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _write_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    first = folder / "000000.png"
    first.write_bytes(png(1, 8, 8))
    for number in range(1, _SHARD):
        os.link(first, folder / f"{number:06}.png")

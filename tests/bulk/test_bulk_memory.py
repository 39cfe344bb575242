"""Memory does not grow with the number of pictures."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.bulk.jobs import Command, keys
from tests.pictures import png

_SHARD = 10_000


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_200_000_pictures(tmp_path: Path) -> None:
    for number in range(10):
        _write_shard(tmp_path / f"{number}.tar")
        _write_folder(tmp_path / "photos" / str(number))
    few = _peak_memory(tmp_path, "0.tar", "photos/0", "--out", "few.parquet")
    many = _peak_memory(tmp_path, "{0..9}.tar", "photos", "--out", "many.parquet")
    print(f"20,000 pictures: {few / 1e6:.0f} MB, 200,000: {many / 1e6:.0f} MB")
    found = keys(tmp_path / "many.parquet")
    assert len(found) == len(set(found)) == 200_000
    assert many < few + 32e6


def _peak_memory(folder: Path, *arguments: str) -> int:
    """Bytes that a whole job held at most."""
    process = Command(folder=folder).start(*arguments, "--row-group", 5_000)
    assert process.stderr is not None
    try:
        with process.stderr:
            said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return 1024 * usage.ru_maxrss


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

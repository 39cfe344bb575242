"""The GPU benchmark's parts that need no GPU: what is carried arrives, and what is left out is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu import tables
from benchmarks.gpu.encoders import ENCODE
from benchmarks.gpu.run import Bench, Figures, Step
from benchmarks.gpu.setting import TINY
from benchmarks.gpu.wheels import pack, unpack
from benchmarks.in_process import DECODE, DECODING
from benchmarks.layout import Layout
from benchmarks.measurements import Key, Measurements
from benchmarks.run import terminal


def test_wheels_come_out_of_their_parts_as_they_went_in(tmp_path: Path) -> None:
    contents = {f"{name}.whl": bytes([number]) * 700 * number for number, name in enumerate("abcde")}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    parts = pack(sorted(tmp_path.glob("*.whl")), tmp_path / "parts", part_bytes=2048)
    assert len(parts) > 3
    assert all(part.stat().st_size <= 2048 for part in parts)
    (tmp_path / "there").mkdir()
    found = unpack(tmp_path / "parts", tmp_path / "there")
    assert {path.name: path.read_bytes() for path in found} == contents


class _Scripted(Bench):
    """A run of other steps."""

    def __init__(self, steps: list[Step], minutes: float) -> None:
        self._scripted = steps
        self._console = terminal()
        self._setting = replace(TINY, minutes=minutes)

    def _steps(self) -> Iterator[Step]:
        yield from self._scripted


def _fails() -> Figures:
    raise RuntimeError("libnvinfer is missing\nand much more")


def _works() -> Figures:
    return [(Key("encoder", ENCODE, 4), {"rate": 7.0})]


def test_a_step_that_fails_is_named_and_takes_no_other_with_it() -> None:
    found, left_out = _Scripted([("tensorrt", _fails), ("cuda", _works)], minutes=1).run()
    assert left_out == ["tensorrt: libnvinfer is missing"]
    assert found.spread(Key("encoder", ENCODE, 4), "rate").median == 7


def test_what_there_is_no_time_for_is_named() -> None:
    found, left_out = _Scripted([("cuda", _works)], minutes=0).run()
    assert (left_out, found.samples) == (["cuda: no time"], {})


def test_tables_show_what_was_measured_and_a_dash_for_the_rest() -> None:
    found = Measurements()
    found.add(Key("ours", ENCODE, 1), {"rate": 10.0})
    found.add(Key("ours", ENCODE, 8), {"rate": 80.0})
    found.add(Key("theirs", ENCODE, 8), {"rate": 40.0})
    found.add(Key(DECODING, DECODE, 4), {"rate": 200.0})
    served = {"rate": 150.0, "p50_ms": 1.0, "p99_ms": 2.0}
    found.add(Key(tables.service("ViT", Layout(2)), tables.JPEG, 64), served)
    encoders, _, service, _ = tables.sheets(found, 4)
    assert encoders.rows == [["ours", "10", "80"], ["theirs", "-", "40"]]
    assert service.rows[0][:5] == ["service, ViT, 2 workers", tables.JPEG, "64", "150", "0.75"]

"""Threads are counted from what the process may use, not from what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores, all of them ours, and a folder of files that stand in for the cgroup's."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "_CGROUP_V1", tmp_path)
    return tmp_path


def test_a_whole_machine_is_left_to_the_runtime(machine: Path) -> None:
    assert cores.available_cores() == 8
    assert cores.inference_threads() == 0


@pytest.mark.parametrize(
    ("quota", "found"), [("200000 100000", 2), ("250000 100000", 3), ("10000 100000", 1), ("max 100000", 8)]
)
def test_a_quota_of_cgroup_v2(machine: Path, quota: str, found: int) -> None:
    (machine / "cpu.max").write_text(quota)
    assert cores.available_cores() == found
    assert cores.inference_threads() == (found if found < 8 else 0)


def test_a_quota_of_cgroup_v1(machine: Path) -> None:
    (machine / "cpu.cfs_quota_us").write_text("300000\n")
    (machine / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.inference_threads() == 3


def test_an_affinity(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5})
    assert cores.inference_threads() == 2


def test_what_is_asked_for_is_given(machine: Path) -> None:
    (machine / "cpu.max").write_text("200000 100000")
    assert cores.inference_threads(7) == 7

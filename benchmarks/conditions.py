"""What the figures were taken on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models.cores import available_cores

_PACKAGES = (
    *("clipserve", "onnxruntime", "openvino", "numpy", "pillow", "tokenizers", "torch", "open_clip_torch"),
    *("fastapi", "uvicorn", "uvloop", "httptools", "orjson"),
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def conditions() -> dict[str, Any]:
    """Processor, cores, memory, versions and the load before anything was started."""
    cpu = _cpu()
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cpu_flags": [flag for flag in _FLAGS if flag in cpu.get("flags", "").split()],
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "note": "load generator and server share the cores",
    }


@contextmanager
def cores_used_by_others(of: dict[str, Any]) -> Iterator[None]:
    """Note in ``of`` how many cores were busy on average with what is not part of the block.

    An upper bound: processes of the block that nobody waits for count as strangers.
    """
    began, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    yield
    elapsed = time.perf_counter() - began
    others = (_busy_seconds() - busy) - (_own_seconds() - own)
    of["cores_used_by_others"] = round(max(0.0, others) / elapsed, 2)
    of["minutes"] = round(elapsed / 60, 1)


def _busy_seconds() -> float:
    """Processor time of the whole machine since it started, without idling and waiting."""
    user, nice, system, _, _, irq, softirq, *_ = (
        int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def folder_name(of: dict[str, Any]) -> str:
    """``<date>-<cpu>-<cores>c``."""
    cpu = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)|cpu|processor|@.*", "", of["cpu"].lower())).strip("-")
    return f"{of['date'][:10]}-{cpu or 'cpu'}-{of['cores']}c"


def _cpu() -> dict[str, str]:
    """The first processor of ``/proc/cpuinfo``."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

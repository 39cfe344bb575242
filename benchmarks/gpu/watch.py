"""How busy the GPU is, and how much memory is taken. Without a GPU there is nothing to tell."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

_EVERY = 0.05


def device() -> Any:
    """The first GPU's handle, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None


def facts() -> dict[str, str]:
    """What the GPU and its driver are."""
    import pynvml

    if (handle := device()) is None:
        return {"gpu": "none"}
    return {"gpu": pynvml.nvmlDeviceGetName(handle), "driver": pynvml.nvmlSystemGetDriverVersion()}


def device_memory() -> float:
    """MB of the GPU's memory that are taken, by whomever; 0 without a GPU."""
    import pynvml

    handle = device()
    return 0.0 if handle is None else pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6


def resident_memory() -> float:
    """MB that this process has in memory."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


@contextmanager
def watched(figures: dict[str, float]) -> Iterator[None]:
    """Put the mean utilisation (%) and the memory of the GPU during the block into ``figures``."""
    import pynvml

    handle, samples, over = device(), list[float](), threading.Event()
    if handle is None:
        yield
        return

    def look() -> None:
        while not over.wait(_EVERY):
            samples.append(float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        figures |= {"gpu_percent": fmean(samples or [0.0]), "gpu_mb": device_memory()}

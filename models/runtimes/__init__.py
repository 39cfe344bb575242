"""One short file a runtime, all behind ``Session``: a loaded graph that turns a batch into features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

RuntimeName = Literal["auto", "onnxruntime"]
Provider = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How graphs are to be run. ``threads`` is per session; 0 lets the runtime choose."""

    runtime: RuntimeName = "auto"
    provider: Provider = "auto"
    threads: int = 0
    device_id: int = 0
    gpu_memory_limit: int = 0


class Session(Protocol):
    """A loaded graph of one input and one output.

    ``run`` may be called from up to ``slots`` threads at a time and never changes its argument.
    """

    runtime: str
    provider: str
    precision: str
    slots: int

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``pixels`` uint8 (N, H, W, 3) or ``tokens`` int64 (N, L) → features float32 (N, D)."""
        ...

    def close(self) -> None:
        """Release what the graph holds. Nothing may run on it afterwards."""
        ...


def open_session(path: Path, options: RuntimeOptions) -> Session:
    """Load the ONNX file at ``path``.

    Raises:
        RuntimeUnavailableError: what was asked for cannot run here.
        ManifestError: the file is no ONNX graph of one input and one output.
    """
    from models.runtimes.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, options)

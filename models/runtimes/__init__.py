"""One short file a runtime, all behind ``Session``: a loaded graph that turns a batch into features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import RuntimeUnavailableError

RuntimeName = Literal["auto", "onnxruntime", "openvino"]
RuntimePrecision = Literal["auto", "fp32", "bf16"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Switch = Literal["auto", "on", "off"]

LENGTH_STEP = 2


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How graphs are to be run.

    ``precision`` is what a runtime computes in, whatever the weights are stored in. ``threads`` is per
    session; 0: see ``models.cores.inference_threads``. ``cache_dir`` keeps compiled graphs and the verdicts
    of ``models.selection``. ``runtime`` "auto" is resolved there; here it means the reference, ONNX Runtime.

    ``devices`` are GPUs by number; each runs batches of its own. ``buckets`` pads batches to few sizes of up
    to ``max_batch`` (auto: on GPUs), ``cuda_graphs`` records the kernels of each. ``weights`` is what the
    model's file holds, and ``context_length`` its longest token sequence.
    """

    runtime: RuntimeName = "auto"
    precision: RuntimePrecision = "auto"
    provider: Provider = "auto"
    threads: int = 0
    devices: tuple[int, ...] = (0,)
    gpu_memory_limit: int = 0
    max_batch: int = 32
    buckets: Switch = "auto"
    cuda_graphs: bool = False
    weights: str = "fp32"
    context_length: int = 77
    cache_dir: Path | None = None


class Session(Protocol):
    """A loaded graph of one input and one output.

    ``run`` may be called from up to ``slots`` threads at a time and never changes its argument.
    ``best_batch`` is the size above which a batch makes others wait for longer than it gains; None: none.
    ``company`` is the number of items below which a run is better put off until another one has ended.
    ``buckets`` are the sizes that batches are padded to; empty: each runs at its own. Token sequences come
    padded to a multiple of ``length_step``.
    """

    runtime: str
    provider: str
    precision: str
    slots: int
    best_batch: int | None
    company: int
    buckets: tuple[int, ...]
    length_step: int

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``pixels`` uint8 (N, H, W, 3) or ``tokens`` int64 (N, L) → features float32 (N, D)."""
        ...

    def warm_up(self, batch: NDArray[Any]) -> None:
        """Run ``batch`` wherever its shape would otherwise be met for the first time in service."""
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
    if options.runtime == "openvino":
        try:
            from models.runtimes.openvino import OpenVinoSession
        except ImportError as error:
            raise RuntimeUnavailableError(
                "runtime 'openvino' is not installed; install it with: pip install 'clipserve[cpu]'"
            ) from error
        return OpenVinoSession(path, options)
    from models.runtimes.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, options)

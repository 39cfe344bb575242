"""OpenVINO: the fastest runtime on CPUs, above all on those that compute in bfloat16."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from models.errors import ManifestError, RuntimeUnavailableError
from models.runtimes import RuntimeOptions

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoSession:
    """One graph in OpenVINO, with as many requests in flight as it says is best.

    Every request keeps tensors of its own and copies in and out of them: OpenVINO would otherwise go on
    using the caller's array after ``run`` has returned. Meets ``models.runtimes.Session``.
    """

    runtime = "openvino"
    provider = "cpu"

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if options.provider not in {"auto", "cpu"}:
            raise RuntimeUnavailableError(f"runtime 'openvino' runs on the CPU, not on {options.provider!r}")
        if options.precision == "bf16" and not computes_bf16():
            raise RuntimeUnavailableError("this CPU has neither AMX nor AVX-512 BF16; use precision fp32")
        self.precision = "bf16" if options.precision == "bf16" else "fp32"
        self._compiled = _compile(path, options, _HINTS[self.precision])
        self.slots = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(self.slots):
            self._free.put(self._compiled.create_infer_request())

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """One batch through the graph: see ``models.runtimes.Session.run``."""
        request = self._free.get()
        try:
            tensor = request.get_input_tensor()
            tensor.shape = batch.shape
            tensor.data[...] = batch
            request.infer()
            features: NDArray[np.float32] = request.get_output_tensor().data.copy()
            return features
        finally:
            self._free.put(request)

    def close(self) -> None:
        """Drop the requests and the graph; OpenVINO frees their memory with the last reference."""
        while not self._free.empty():
            self._free.get()
        del self._compiled


@cache
def computes_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16: AMX or AVX-512 BF16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> ov.Core:
    return ov.Core()


def _compile(path: Path, options: RuntimeOptions, precision: str) -> ov.CompiledModel:
    try:
        model = _core().read_model(path)
    except RuntimeError as error:
        if not path.is_file():
            raise ManifestError(f"{path.name} is missing") from error
        raise ManifestError(f"{path.name} is no ONNX graph that can be loaded") from error
    names = [output.any_name for output in model.outputs]
    if len(model.inputs) != 1 or names != ["features"]:
        raise ManifestError(
            f"{path.name}: a graph must have one input and the one output 'features', not inputs"
            f" {[one.any_name for one in model.inputs]} and outputs {names}"
        )
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT",
        # Pinned to cores, its threads would wait for the decoders that run there.
        "ENABLE_CPU_PINNING": False,
    }
    if options.threads:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.cache_dir is not None:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        settings["CACHE_DIR"] = str(options.cache_dir)
    return _core().compile_model(model, "CPU", settings)

"""OpenVINO: the fastest runtime on CPUs, above all on those that compute in bfloat16."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from models.cores import available_cores, inference_threads
from models.errors import ManifestError, RuntimeUnavailableError
from models.runtimes import LENGTH_STEP, RuntimeOptions

_HINTS = {"fp32": "f32", "bf16": "bf16"}
# ViT-B-32 in bf16 costs a core 46 ms a picture in batches of 8 and of 32 alike. At 64 clients and four slots
# p99 ÷ p50 was 2.2 with batches of up to 16, 1.5 with 12, 1.3 with 10, 1.2 with 8.
_BEST_PICTURES = 10
# 32 clients with texts of ten tokens: 615 a second with batches of up to 8, 465 where the first slot that is
# free takes whatever waits and leaves little for the others.
_BEST_TEXTS = 8
# 32 clients with such texts, two runs: 670 and 660 a second where a batch waits for four texts while others
# run, 525 and 615 where it does not, 580 and 660 with six. A run by itself costs as much as six texts.
_TEXTS_IN_COMPANY = 4


class OpenVinoSession:
    """One graph in OpenVINO, compiled twice: for many batches side by side, and for one alone.

    Side by side, every batch has a core of its own, which is the most work a second; alone, a batch has
    all cores, which is the shortest wait. A batch that finds nothing else running takes the second.

    Every request keeps tensors of its own and copies in and out of them: OpenVINO would otherwise go on
    using the caller's array after ``run`` has returned. Meets ``models.runtimes.Session``.
    """

    runtime = "openvino"
    provider = "cpu"
    buckets: tuple[int, ...] = ()
    length_step = LENGTH_STEP

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if options.provider not in {"auto", "cpu"}:
            raise RuntimeUnavailableError(f"runtime 'openvino' runs on the CPU, not on {options.provider!r}")
        if options.precision == "bf16" and not computes_bf16():
            raise RuntimeUnavailableError("this CPU has neither AMX nor AVX-512 BF16; use precision fp32")
        self.precision = "bf16" if options.precision == "bf16" else "fp32"
        side_by_side = _compile(path, options, self.precision, hint="THROUGHPUT")
        pixels = _check(path, side_by_side).partial_shape.rank.get_length() == 4
        self.best_batch: int | None = _BEST_PICTURES if pixels else _BEST_TEXTS
        self.company = 1 if pixels else _TEXTS_IN_COMPANY
        self.slots = int(side_by_side.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [side_by_side.create_infer_request() for _ in range(self.slots)]
        self._alone: ov.InferRequest | None = None
        if self.slots > 1:
            self._alone = _compile(path, options, self.precision, hint="LATENCY").create_infer_request()
        self._running = 0
        self._lock = Lock()

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """One batch through the graph: see ``models.runtimes.Session.run``."""
        request, is_alone = self._take()
        try:
            tensor = request.get_input_tensor()
            tensor.shape = batch.shape
            tensor.data[...] = batch
            request.infer()
            features: NDArray[np.float32] = request.get_output_tensor().data.copy()
            return features
        finally:
            self._give_back(request, is_alone=is_alone)

    def warm_up(self, batch: NDArray[Any]) -> None:
        """One run: see ``models.runtimes.Session.warm_up``."""
        self.run(batch)

    def close(self) -> None:
        """Drop the requests, and with them the graphs; OpenVINO frees their memory with the last one."""
        self._requests.clear()
        self._alone = None

    def _take(self) -> tuple[ov.InferRequest, bool]:
        with self._lock:
            self._running += 1
            if self._running == 1 and self._alone is not None:
                request, self._alone = self._alone, None
                return request, True
            return self._requests.pop(), False

    def _give_back(self, request: ov.InferRequest, *, is_alone: bool) -> None:
        with self._lock:
            self._running -= 1
            if is_alone:
                self._alone = request
            else:
                self._requests.append(request)


@cache
def computes_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16: AMX or AVX-512 BF16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> ov.Core:
    return ov.Core()


def _check(path: Path, graph: ov.CompiledModel) -> Any:
    """The one input of a graph that is as it should be."""
    names = [output.any_name for output in graph.outputs]
    if len(graph.inputs) != 1 or names != ["features"]:
        raise ManifestError(
            f"{path.name}: a graph must have one input and the one output 'features', not inputs"
            f" {[one.any_name for one in graph.inputs]} and outputs {names}"
        )
    return graph.inputs[0]


def _compile(path: Path, options: RuntimeOptions, precision: str, *, hint: str) -> ov.CompiledModel:
    """From the cache without reading the ONNX file at all, where it was compiled before."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": hint,
        # Pinned to cores, its threads would wait for the decoders that run there.
        "ENABLE_CPU_PINNING": False,
    }
    if threads := inference_threads(options.threads):
        settings["INFERENCE_NUM_THREADS"] = threads
    if hint == "THROUGHPUT":
        # Left alone, OpenVINO gives texts two cores a batch: 870 a second of 10 tokens in batches of 8 to 32
        # (ViT-B-32, bf16, 4 cores) where a core a batch gives 980. More than there are cores means as many.
        settings["NUM_STREAMS"] = threads or available_cores()
    if options.cache_dir is not None:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        settings["CACHE_DIR"] = str(options.cache_dir)
    try:
        return _core().compile_model(path, "CPU", settings)
    except RuntimeError as error:
        if not path.is_file():
            raise ManifestError(f"{path.name} is missing") from error
        raise ManifestError(f"{path.name} is no ONNX graph that can be loaded") from error

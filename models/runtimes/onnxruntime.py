"""ONNX Runtime: the reference runtime, on the CPU or through CUDA."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.cores import inference_threads
from models.errors import ManifestError, RuntimeUnavailableError
from models.runtimes import RuntimeOptions

_LOG = logging.getLogger("clipserve.runtime")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_REMEDY = {
    "cpu": "install ONNX Runtime with: pip install 'clipserve[cpu]'",
    "cuda": (
        "install the GPU build with: pip uninstall onnxruntime && pip install 'clipserve[gpu]',"
        " and check that the NVIDIA driver is there with: nvidia-smi"
    ),
}


class OnnxRuntimeSession:
    """One graph in ONNX Runtime. Meets ``models.runtimes.Session``."""

    runtime = "onnxruntime"
    precision = "fp32"
    best_batch: int | None = None

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if options.precision == "bf16":
            raise RuntimeUnavailableError("runtime 'onnxruntime' does not compute in bf16; use 'openvino'")
        self.provider, self._session = _open(path, options)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or [output.name for output in outputs] != ["features"]:
            raise ManifestError(
                f"{path.name}: a graph must have one input and the one output 'features', not inputs"
                f" {[i.name for i in inputs]} and outputs {[o.name for o in outputs]}"
            )
        self._input = inputs[0].name
        # A CPU session spreads one batch over its threads; a second batch would only fight for them.
        # On a GPU the second is staged and copied while the first one runs.
        self.slots = 1 if self.provider == "cpu" else 2

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """One batch through the graph: see ``models.runtimes.Session.run``."""
        features: NDArray[np.float32] = self._session.run(["features"], {self._input: batch})[0]
        return features

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its memory with the last reference."""
        del self._session


def _open(path: Path, options: RuntimeOptions) -> tuple[str, ort.InferenceSession]:
    if options.provider != "auto":
        return options.provider, _session(path, options, options.provider)
    if _PROVIDERS["cuda"] in ort.get_available_providers():
        try:
            return "cuda", _session(path, options, "cuda")
        except RuntimeUnavailableError as error:
            _LOG.warning("provider auto: falling back to the CPU: %s", error)
    return "cpu", _session(path, options, "cpu")


def _session(path: Path, options: RuntimeOptions, provider: str) -> ort.InferenceSession:
    """A session that really runs on ``provider``.

    ONNX Runtime replaces a provider it cannot load by the CPU without an error, so what it says it
    offers and what the session says it uses are both compared with what was asked for.
    """
    wanted = _PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise RuntimeUnavailableError(
            f"provider {provider!r} is not in this ONNX Runtime; {_REMEDY[provider]}"
        )
    if provider == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN from their wheels lie where no loader looks
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=_session_options(options),
            providers=[(wanted, _provider_options(options, provider))],
        )
    except Exception as error:  # ONNX Runtime's own error classes share no public base
        if not path.is_file():
            raise ManifestError(f"{path.name} is missing") from error
        raise ManifestError(
            f"{path.name} is no ONNX graph that can be loaded: {_first_line(error)}"
        ) from error
    if session.get_providers()[0] != wanted:
        raise RuntimeUnavailableError(
            f"provider {provider!r} was asked for and {session.get_providers()[0]} was given;"
            f" its libraries did not load; {_REMEDY[provider]}"
        )
    return session


def _session_options(options: RuntimeOptions) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = inference_threads(options.threads)
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    # Threads that spin between batches would take the cores that decode the next pictures.
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return chosen


def _provider_options(options: RuntimeOptions, provider: str) -> dict[str, str]:
    if provider == "cpu":
        return {}
    chosen = {
        "device_id": str(options.device_id),
        # An exhaustive search would tune anew for every batch size it meets.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.gpu_memory_limit:
        chosen["gpu_mem_limit"] = str(options.gpu_memory_limit)
    return chosen


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__

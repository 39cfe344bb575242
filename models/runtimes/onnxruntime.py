"""ONNX Runtime: the reference runtime, on the CPU, or on GPUs through CUDA or TensorRT."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.cores import inference_threads
from models.errors import ManifestError, RuntimeUnavailableError
from models.runtimes import LENGTH_STEP, RuntimeOptions
from models.runtimes.buckets import BucketedBatches, Device

_LOG = logging.getLogger("clipserve.runtime")
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_GPU_REMEDY = (
    "install the GPU build with: pip uninstall onnxruntime && pip install 'clipserve[{extra}]',"
    " and check that the NVIDIA driver is there with: nvidia-smi"
)
_REMEDY = {
    "cpu": "install ONNX Runtime with: pip install 'clipserve[cpu]'",
    "cuda": _GPU_REMEDY.format(extra="gpu"),
    "tensorrt": _GPU_REMEDY.format(extra="tensorrt"),
}
_BUCKET_LENGTH_STEP = 16  # five lengths for a context of 77: each costs a warm-up for each bucket


class OnnxRuntimeSession:
    """One graph in ONNX Runtime, on the CPU or on each of ``devices``. Meets ``models.runtimes.Session``."""

    runtime = "onnxruntime"
    best_batch: int | None = None
    company = 1
    buckets: tuple[int, ...] = ()
    length_step = LENGTH_STEP
    # A CPU session spreads one batch over its threads; a second batch would only fight for them.
    slots = 1

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if options.precision == "bf16":
            raise RuntimeUnavailableError("runtime 'onnxruntime' does not compute in bf16; use 'openvino'")
        if options.cuda_graphs and options.provider not in {"auto", "cuda"}:
            raise RuntimeUnavailableError(f"CUDA graphs need provider 'cuda', not {options.provider!r}")
        self.provider, sessions = _open(path, options)
        self.precision = _precision(self.provider, options)
        self._session = sessions[0]
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or [output.name for output in outputs] != ["features"]:
            raise ManifestError(
                f"{path.name}: a graph must have one input and the one output 'features', not inputs"
                f" {[i.name for i in inputs]} and outputs {[o.name for o in outputs]}"
            )
        self._input = inputs[0].name
        self._batches: BucketedBatches | None = None
        if _is_bucketed(self.provider, options):
            self._batches = BucketedBatches(
                _devices(self.provider, options, sessions),
                max_batch=options.max_batch,
                cuda_graphs=options.cuda_graphs and self.provider == "cuda",
            )
            self.slots, self.buckets = self._batches.slots, self._batches.sizes
            self.length_step = _BUCKET_LENGTH_STEP

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """One batch through the graph: see ``models.runtimes.Session.run``."""
        if self._batches is not None:
            return self._batches.run(batch)
        features: NDArray[np.float32] = self._session.run(["features"], {self._input: batch})[0]
        return features

    def warm_up(self, batch: NDArray[Any]) -> None:
        """One run in every lane there is: see ``models.runtimes.Session.warm_up``."""
        if self._batches is None:
            self.run(batch)
        else:
            self._batches.warm_up(batch)

    def close(self) -> None:
        """Drop the sessions; ONNX Runtime frees their memory with the last reference."""
        if self._batches is not None:
            self._batches.close()
        del self._session, self._batches


def _is_bucketed(provider: str, options: RuntimeOptions) -> bool:
    return options.buckets == "on" or (options.buckets == "auto" and provider != "cpu")


def _precision(provider: str, options: RuntimeOptions) -> str:
    """What a GPU computes in: float32 in TF32 unless plain float32 was asked for. A CPU widens float16."""
    if provider == "cpu":
        return "fp32"
    if options.weights != "fp32":
        return options.weights
    return "fp32" if provider == "cuda" and options.precision == "fp32" else "tf32"


def _devices(
    provider: str, options: RuntimeOptions, sessions: Iterable[ort.InferenceSession]
) -> list[Device]:
    if provider == "cpu":
        return [Device(kind="cpu", number=0, session=session) for session in sessions]
    return [
        Device(kind="cuda", number=number, session=session)
        for number, session in zip(options.devices, sessions, strict=True)
    ]


def _open(path: Path, options: RuntimeOptions) -> tuple[str, list[ort.InferenceSession]]:
    if options.provider != "auto":
        return options.provider, _sessions(path, options, options.provider)
    if _PROVIDERS["cuda"] in ort.get_available_providers():
        try:
            return "cuda", _sessions(path, options, "cuda")
        except RuntimeUnavailableError as error:
            _LOG.warning("provider auto: falling back to the CPU: %s", error)
    return "cpu", _sessions(path, options, "cpu")


def _sessions(path: Path, options: RuntimeOptions, provider: str) -> list[ort.InferenceSession]:
    """One a device. A CPU is one device, unless buckets are tried out there."""
    several = provider != "cpu" or options.buckets == "on"
    return [_session(path, options, provider, number) for number in options.devices[: None if several else 1]]


def _session(path: Path, options: RuntimeOptions, provider: str, number: int) -> ort.InferenceSession:
    """A session that really runs on ``provider``.

    ONNX Runtime replaces a provider it cannot load by the CPU without an error, so what it says it
    offers and what the session says it uses are both compared with what was asked for.
    """
    wanted = _PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise RuntimeUnavailableError(
            f"provider {provider!r} is not in this ONNX Runtime; {_REMEDY[provider]}"
        )
    if provider != "cpu":
        ort.preload_dlls()  # CUDA and cuDNN from their wheels lie where no loader looks
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=_session_options(options, provider),
            providers=_providers(path, options, provider, number),
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


def _session_options(options: RuntimeOptions, provider: str) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    # Beside a GPU nothing is left to compute, and a pool for each session would be threads for nothing.
    chosen.intra_op_num_threads = inference_threads(options.threads) if provider == "cpu" else 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    # Threads that spin between batches would take the cores that decode the next pictures.
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return chosen


def _providers(
    path: Path, options: RuntimeOptions, provider: str, number: int
) -> list[tuple[str, dict[str, str]]]:
    if provider == "cpu":
        return [(_PROVIDERS["cpu"], {})]
    cuda = (_PROVIDERS["cuda"], _cuda_options(options, number))
    if provider == "cuda":
        return [cuda]
    from models.runtimes.tensorrt import tensorrt_options

    return [(_PROVIDERS["tensorrt"], tensorrt_options(path, options, number)), cuda]


def _cuda_options(options: RuntimeOptions, number: int) -> dict[str, str]:
    chosen = {
        "device_id": str(number),
        # An exhaustive search would tune anew for every batch size it meets.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0" if options.precision == "fp32" else "1",
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
    }
    if options.gpu_memory_limit:
        chosen["gpu_mem_limit"] = str(options.gpu_memory_limit)
    return chosen


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__

"""TensorRT through ONNX Runtime: engines that are built once for a GPU, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime as ort

from models.errors import RuntimeUnavailableError
from models.runtimes import RuntimeOptions


def tensorrt_options(path: Path, options: RuntimeOptions, number: int) -> dict[str, str]:
    """What ONNX Runtime's TensorRT execution provider is told for the graph ``path`` on GPU ``number``.

    One optimisation profile takes every shape from the smallest to the largest, and is tuned for the
    largest. Engines lie in a folder of the cache for this graph, GPU, driver and version.

    Raises:
        RuntimeUnavailableError: there is no driver to ask for the GPU.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")  # loads the wheel's libraries, which no loader finds
    chosen = {
        "device_id": str(number),
        "trt_fp16_enable": "1" if options.weights == "fp16" else "0",
        **_profile(path, options),
    }
    if options.cache_dir is not None:
        folder = options.cache_dir / f"tensorrt-{gpu_key(number)}" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("engine", "timing"):
            chosen |= {f"trt_{name}_cache_enable": "1", f"trt_{name}_cache_path": str(folder)}
    return chosen


def gpu_key(number: int) -> str:
    """What an engine holds for: the kind of GPU, its driver, TensorRT's and ONNX Runtime's version, hashed.

    Raises:
        RuntimeUnavailableError: there is no driver to ask.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(number))
        facts = (gpu, pynvml.nvmlSystemGetDriverVersion(), _tensorrt_version(), ort.__version__)
    except pynvml.NVMLError as error:
        raise RuntimeUnavailableError(f"provider 'tensorrt': no NVIDIA driver answers: {error}") from error
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _tensorrt_version() -> str:
    """The wheel's; a TensorRT that was installed otherwise is told apart by ONNX Runtime itself."""
    for name in ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return ""


def _profile(path: Path, options: RuntimeOptions) -> dict[str, str]:
    given = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0]
    rest = given.shape[1:]

    def shape(count: int, length: int) -> str:
        dims = (count, *(dim if isinstance(dim, int) else length for dim in rest))
        return f"{given.name}:{'x'.join(map(str, dims))}"

    largest = shape(options.max_batch, options.context_length)
    return {
        "trt_profile_min_shapes": shape(1, 1),
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
    }

"""What TensorRT is told, with a driver that is played: engines for other GPUs or drivers are never taken."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pynvml
import pytest

from models.errors import RuntimeUnavailableError
from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions
from models.runtimes.tensorrt import gpu_key, tensorrt_options
from tests.toy_models import CONTEXT, write_toy_model

_WITHOUT_GPU = pytest.mark.skipif(
    "TensorrtExecutionProvider" in ort.get_available_providers(), reason="ONNX Runtime is the GPU build here"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_toy_model(tmp_path)


class Driver:
    """Answers as NVIDIA's management library does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: str, version: str) -> None:
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: gpus[handle])
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: version)


@pytest.mark.parametrize(
    ("graph", "least", "most"),
    [("image", "pixels:1x32x32x3", "pixels:48x32x32x3"), ("text", "tokens:1x1", f"tokens:48x{CONTEXT}")],
)
def test_one_profile_takes_every_bucket(place: Path, graph: str, least: str, most: str) -> None:
    told = tensorrt_options(
        place / f"{graph}.onnx", RuntimeOptions(max_batch=48, context_length=CONTEXT, weights="fp16"), 3
    )
    assert (told["trt_profile_min_shapes"], told["trt_profile_max_shapes"]) == (least, most)
    assert (told["device_id"], told["trt_fp16_enable"]) == ("3", "1")


def test_engines_are_kept_by_gpu_driver_and_graph(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RuntimeOptions(cache_dir=tmp_path / "cache")
    folders = []
    for graph, number, version in [
        *(("image", 0, "580.1"), ("text", 0, "580.1")),
        *(("image", 1, "580.1"), ("image", 2, "580.1"), ("image", 0, "590.2")),
    ]:
        Driver(monkeypatch, "NVIDIA H100", "NVIDIA L4", "NVIDIA H100", version=version)
        told = tensorrt_options(place / f"{graph}.onnx", options, number)
        folders.append(Path(told["trt_engine_cache_path"]))
        assert folders[-1].is_dir()
    first, _, _, like_the_first, _ = folders
    assert first == like_the_first
    assert len(set(folders)) == 4


@_WITHOUT_GPU
def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver answers"):
        gpu_key(0)


@_WITHOUT_GPU
def test_a_build_without_tensorrt_is_refused_with_its_remedy(place: Path) -> None:
    options = RuntimeOptions(runtime="onnxruntime", provider="tensorrt")
    with pytest.raises(RuntimeUnavailableError, match=r"'tensorrt'.*clipserve\[tensorrt\]"):
        ModelRegistry(place.parent, options=options).load("toy")

"""Pixels in, features out, without a server. Each function is called in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.setting import SEED, Setting, know_tiny, name_of
from benchmarks.in_process import timed
from benchmarks.measurements import Key
from models.check_set import CheckSet
from models.manifest import IMAGE_GRAPH, ModelManifest, Precision
from models.parity import compare, top1_agreement
from models.registry import LoadedModel, ModelRegistry
from models.runtimes import Provider, RuntimeOptions, Session, open_session

Figures = list[tuple[Key, dict[str, float]]]
ENCODE, PARITY, SOAK = "encode pictures", "parity", "soak"
_BUDGET = 70.0  # seconds for one encoder's batches


def torch_encoder(setting: Setting, architecture: str) -> Figures:
    """open_clip's own picture tower: float16 and ``torch.compile`` on a GPU, as it is on a CPU."""
    import torch

    from models.architectures import Weights, load
    from models.towers import ImageTower

    know_tiny()
    loaded = load(architecture, Weights(seed=SEED))
    tower: torch.nn.Module = ImageTower(loaded.model.get_submodule("visual"), loaded.image).eval()
    on_gpu = setting.device == "cuda"
    if on_gpu:
        tower.get_submodule("visual").half()
        tower.to("cuda")
        tower = torch.compile(tower, dynamic=False)  # type: ignore[assignment]

    def call(batch: int) -> Callable[[], object]:
        pixels = torch.full((batch, loaded.image.size, loaded.image.size, 3), 128, dtype=torch.uint8)
        pixels = pixels.to(setting.device)

        def run() -> None:
            with torch.inference_mode():
                tower(pixels)
            if on_gpu:
                torch.cuda.synchronize()

        run()
        return run

    name = f"torch {'fp16 compiled' if on_gpu else 'fp32'}"
    return list(_timed_batches(f"{name}, {architecture}", setting, call))


def bare_session(
    setting: Setting, models: Path, architecture: str, precision: Precision, provider: Provider
) -> Figures:
    """ONNX Runtime with nothing set, input and output bound on the device: what the graph alone can do."""
    import onnxruntime as ort

    providers = {
        "cpu": ["CPUExecutionProvider"],
        "cuda": ["CUDAExecutionProvider"],
        "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    }[provider]
    if setting.device == "cuda":
        ort.preload_dlls()
    graph = models / name_of(architecture, precision) / IMAGE_GRAPH
    session = ort.InferenceSession(graph, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise RuntimeError(f"{providers[0]} did not load")

    def call(batch: int) -> Callable[[], object]:
        pixels = _pixels(batch, session.get_inputs()[0].shape[1])
        binding = session.io_binding()
        binding.bind_ortvalue_input("pixels", ort.OrtValue.ortvalue_from_numpy(pixels, setting.device, 0))
        binding.bind_output("features", setting.device, 0)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        run()
        return run

    return list(_timed_batches(f"bare {provider} {precision}, {architecture}", setting, call))


def served_session(
    setting: Setting,
    models: Path,
    cache: Path,
    architecture: str,
    precision: Precision,
    provider: Provider,
    cuda_graphs: bool,
) -> Figures:
    """The session of clipserve, with as many batches under way as it has slots; numpy in, numpy out."""
    options = replace(setting.options(provider, precision, cache), cuda_graphs=cuda_graphs)
    graph = models / name_of(architecture, precision) / IMAGE_GRAPH
    size = ModelManifest.read(graph.parent).image.size
    session = open_session(graph, options)
    name = f"clipserve {provider}{' graphs' if cuda_graphs else ''} {precision}, {architecture}"
    found: Figures = []
    with ThreadPoolExecutor(session.slots) as slots:
        for batch in setting.batches:
            pixels = _pixels(batch, size)
            session.warm_up(pixels)
            under_way = partial(_run_all, slots, session, [pixels] * session.slots)
            figures = timed(under_way, batch * session.slots, setting.seconds)
            alone = timed(partial(session.run, pixels), batch, setting.seconds / 2)
            found.append((Key(name, ENCODE, batch), figures | {"alone_ms": alone["p50_ms"]}))
    session.close()
    return found


def parity(setting: Setting, models: Path, cache: Path, architecture: str, precision: Precision) -> Figures:
    """The check set here against ONNX Runtime in float32 on the CPU: smallest cosines, equal top-1."""
    plain = RuntimeOptions(runtime="onnxruntime", provider="cpu", precision="fp32")
    wanted = _features(models, name_of(architecture, "fp32"), plain)
    here = setting.options(setting.provider, precision, cache)
    found = _features(models, name_of(architecture, precision), here)
    classes = np.arange(len(wanted[1]))
    figures = {
        "image_cosine": compare("image", wanted[0], found[0]).min_cosine,
        "text_cosine": compare("text", wanted[1], found[1]).min_cosine,
        "top1": top1_agreement(wanted, found, classes),
    }
    return [(Key(f"clipserve {setting.provider} {precision}, {architecture}", PARITY), figures)]


def soak(setting: Setting, models: Path, cache: Path, architecture: str, precision: Precision) -> Figures:
    """Batches of changing sizes; memory after a tenth of the time, and at the end."""
    from benchmarks.gpu.watch import device_memory, resident_memory

    model = _load(
        models, name_of(architecture, precision), setting.options(setting.provider, precision, cache)
    )
    rng, size = np.random.default_rng(0), model.manifest.image.size
    began = time.perf_counter()
    first: tuple[float, float] | None = None
    while (elapsed := time.perf_counter() - began) < setting.soak_seconds:
        model.encode_pixels(_pixels(int(rng.integers(1, setting.max_batch + 1)), size))
        model.encode_texts(["a photo of " * int(rng.integers(1, 20))] * int(rng.integers(1, 9)))
        if first is None and elapsed > setting.soak_seconds / 10:
            first = device_memory(), resident_memory()
    device, resident = device_memory(), resident_memory()
    model.close()
    before = first or (device, resident)
    figures = {"device_growth_mb": device - before[0], "resident_growth_mb": resident - before[1]}
    return [(Key(f"clipserve {setting.provider} {precision}, {architecture}", SOAK), figures)]


def _timed_batches(
    name: str, setting: Setting, call: Callable[[int], Callable[[], object]]
) -> Iterator[tuple[Key, dict[str, float]]]:
    """One batch size after the other while the budget lasts: compiling one may take a minute."""
    began = time.perf_counter()
    for batch in setting.batches:
        if time.perf_counter() - began < _BUDGET:
            yield Key(name, ENCODE, batch), timed(call(batch), batch, setting.seconds)


def _features(
    models: Path, name: str, options: RuntimeOptions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    model = _load(models, name, options)
    manifest = model.manifest
    checks = CheckSet.build(size=manifest.image.size, context_length=manifest.text.context_length)
    found = model.encode_images(checks.pictures), model.encode_texts(checks.texts)
    model.close()
    return found


def _load(models: Path, name: str, options: RuntimeOptions) -> LoadedModel:
    return ModelRegistry(models, options=options).load(name)


def _pixels(batch: int, size: int) -> NDArray[np.uint8]:
    return np.full((batch, size, size, 3), 128, np.uint8)


def _run_all(slots: ThreadPoolExecutor, session: Session, batches: Sequence[NDArray[np.uint8]]) -> None:
    list(slots.map(session.run, batches))

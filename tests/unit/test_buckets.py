"""Batches in fixed sizes on the CPU execution provider: the way that GPUs take, with the same answers."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import RuntimeUnavailableError
from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions, open_session
from models.runtimes.buckets import bucket_sizes, page_lock, page_unlock
from tests.toy_models import CONTEXT, DIM, write_toy_model

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
TEXTS = [f"{'a long way ' * (number % 9)}{number}" for number in range(20)]
PLAIN = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1)
BUCKETED = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1, buckets="on", max_batch=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    write_toy_model(place)
    return place


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[LoadedModel]:
    model = ModelRegistry(folder, options=PLAIN).load("toy")
    yield model
    model.close()


@pytest.fixture(scope="module")
def bucketed(folder: Path) -> Iterator[LoadedModel]:
    model = ModelRegistry(folder, options=BUCKETED).load("toy")
    yield model
    model.close()


@given(largest=st.integers(1, 5000))
def test_sizes_double_up_to_the_largest(largest: int) -> None:
    sizes = bucket_sizes(largest)
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert all(small < large <= 2 * small for small, large in itertools.pairwise(sizes))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11, 12, 13, 40])
def test_any_number_of_pictures_gives_the_same_features(
    plain: LoadedModel, bucketed: LoadedModel, count: int
) -> None:
    features = bucketed.encode_pixels(PIXELS[:count])
    np.testing.assert_allclose(features, plain.encode_pixels(PIXELS[:count]), atol=1e-5)


def test_texts_of_any_length_give_the_same_features(plain: LoadedModel, bucketed: LoadedModel) -> None:
    np.testing.assert_allclose(bucketed.encode_texts(TEXTS), plain.encode_texts(TEXTS), atol=1e-5)


def test_what_a_larger_batch_left_in_a_buffer_is_not_seen(bucketed: LoadedModel) -> None:
    alone = bucketed.encode_pixels(PIXELS[:3])
    for _ in range(4):  # through every lane
        bucketed.encode_pixels(PIXELS[20:24])
        assert np.array_equal(bucketed.encode_pixels(PIXELS[:3]), alone)


def test_an_answer_is_the_callers_own(bucketed: LoadedModel) -> None:
    first = bucketed.encode_pixels(PIXELS[:4])
    kept = first.copy()
    for start in range(4, 40, 4):
        bucketed.encode_pixels(PIXELS[start : start + 4])
    assert np.array_equal(first, kept)


def test_a_batch_is_not_changed(bucketed: LoadedModel) -> None:
    batch = PIXELS[:7].copy()
    bucketed.image.run(batch)
    assert np.array_equal(batch, PIXELS[:7])


@pytest.mark.parametrize(("devices", "slots"), [((0,), 2), ((0, 1, 2), 6)])
def test_two_batches_a_device_are_under_way_and_none_are_mixed_up(
    folder: Path, plain: LoadedModel, devices: tuple[int, ...], slots: int
) -> None:
    options = RuntimeOptions(
        runtime="onnxruntime", provider="cpu", threads=1, buckets="on", max_batch=8, devices=devices
    )
    session = open_session(folder / "toy" / "image.onnx", options)
    assert session.slots == slots
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(PIXELS), rng.integers(1, 9)) for _ in range(300)]
    with ThreadPoolExecutor(session.slots + 2) as threads:
        found = list(threads.map(lambda some: session.run(PIXELS[some]), rows))
    session.close()
    features = plain.encode_pixels(PIXELS)
    for some, ours in zip(rows, found, strict=True):
        np.testing.assert_allclose(ours, features[some], atol=1e-5)


class _Recording:
    """Stands where a session is, and keeps the shapes that it is warmed with and runs."""

    runtime, provider, precision, slots, best_batch, company = "recording", "cpu", "fp32", 1, None, 1
    buckets = (1, 2, 3)
    length_step = 16

    def __init__(self) -> None:
        self.warmed: list[tuple[int, ...]] = []
        self.ran: list[tuple[int, ...]] = []

    def run(self, batch: NDArray[np.int64]) -> NDArray[np.float32]:
        self.ran.append(batch.shape)
        return np.eye(1, DIM, dtype=np.float32).repeat(len(batch), axis=0)

    def warm_up(self, batch: NDArray[np.int64]) -> None:
        self.warmed.append(batch.shape)

    def close(self) -> None: ...


def test_every_shape_that_is_served_was_warmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, _Recording] = {}
    monkeypatch.setattr(
        "models.registry.open_session", lambda path, options: opened.setdefault(path.name, _Recording())
    )
    model = ModelRegistry(folder, options=BUCKETED).load("toy")
    image, text = opened["image.onnx"], opened["text.onnx"]
    assert image.warmed == [(count, 32, 32, 3) for count in (1, 2, 3)]
    assert text.warmed == [(count, length) for count in (1, 2, 3) for length in range(16, CONTEXT + 1, 16)]
    for first, last in itertools.pairwise(range(0, len(TEXTS) + 1, 2)):
        model.encode_texts(TEXTS[first:last])
    assert {length for _, length in text.ran} <= {length for _, length in text.warmed}


def test_a_cpu_takes_batches_as_they_are_unless_told_otherwise(plain: LoadedModel) -> None:
    assert (plain.image.buckets, plain.image.slots) == ((), 1)


@pytest.mark.parametrize("provider", ["cpu", "tensorrt"])
def test_cuda_graphs_without_cuda_are_refused(folder: Path, provider: str) -> None:
    options = RuntimeOptions(runtime="onnxruntime", provider=provider, cuda_graphs=True)  # type: ignore[arg-type]
    with pytest.raises(RuntimeUnavailableError, match=f"CUDA graphs need provider 'cuda', not '{provider}'"):
        open_session(folder / "toy" / "image.onnx", options)


@pytest.mark.skipif(bool(ort.cuda_version), reason="ONNX Runtime is the GPU build here")
def test_memory_that_cannot_be_pinned_is_used_as_it_is() -> None:
    assert page_lock(np.zeros(4096, np.uint8)) is False


class _Cuda:
    """Plays CUDA's runtime: which memory is locked, by address."""

    def __init__(self, status: int) -> None:
        self.locked: dict[int, int] = {}
        self._status = status

    def cudaHostRegister(self, where: ctypes.c_void_p, size: ctypes.c_size_t, flags: int) -> int:
        if not self._status:
            self.locked[where.value or 0] = size.value
        return self._status

    def cudaHostUnregister(self, where: ctypes.c_void_p) -> int:
        del self.locked[where.value or 0]
        return 0


@pytest.mark.parametrize("status", [0, 2])
def test_what_was_pinned_is_given_back(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    cuda, memory = _Cuda(status), np.zeros((4, 1024), np.uint8)
    monkeypatch.setattr("models.runtimes.buckets._cuda", lambda: cuda)
    assert page_lock(memory) is (status == 0)
    assert cuda.locked == ({memory.ctypes.data: 4096} if status == 0 else {})
    if not status:
        page_unlock(memory)
        assert cuda.locked == {}


def test_a_graph_that_leaves_the_width_of_its_features_open_is_asked(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "toy" / "image.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "width"
    onnx.save(model, tmp_path / "open.onnx")
    session = open_session(tmp_path / "open.onnx", BUCKETED)
    assert session.run(PIXELS[:3]).shape == (3, DIM)
    session.close()

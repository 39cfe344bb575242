"""Batches in a few fixed sizes, through buffers that are allocated once and stay where they are.

A GPU tunes its kernels, and its memory arena grows, anew for every shape it meets; a CUDA graph is a
recording for one shape at one address. So a batch is padded to the next of a few sizes, and every size has
buffers of its own, in each of the lanes that batches take side by side: while one lane's batch runs, the
next is copied to the device through another.

The CPU execution provider takes the same way when told to, which is how it is tested without a GPU.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_LOG = logging.getLogger("clipserve.runtime")
LANES = 2  # one batch runs, one is copied
_FOR_EVERY_GPU = 1  # cudaHostRegisterPortable


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, … and ``max_batch`` itself."""
    powers = itertools.takewhile(lambda size: size < max_batch, (2**n for n in itertools.count()))
    return (*powers, max_batch)


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a session runs: ``kind`` is ONNX Runtime's word for the memory, ``cpu`` or ``cuda``."""

    kind: str
    number: int
    session: ort.InferenceSession


class BucketedBatches:
    """Runs batches of any size on one or several devices, ``slots`` of them at a time.

    With ``cuda_graphs`` the kernels of each shape are recorded at the second run and replayed from then on.
    ONNX Runtime allows one thread a session for that, so each device has its own.
    """

    def __init__(self, devices: Sequence[Device], *, max_batch: int, cuda_graphs: bool) -> None:
        self.sizes = bucket_sizes(max_batch)
        self._runs_to_warm = 2 if cuda_graphs else 1
        threads = [ThreadPoolExecutor(1) if cuda_graphs else None for _ in devices]
        graphs = [itertools.count(1) if cuda_graphs else None for _ in devices]
        # Neighbours in the queue are on different devices, so that two batches do not share one of two.
        self._lanes = [
            _Lane(device, thread, numbers)
            for _ in range(LANES)
            for device, thread, numbers in zip(devices, threads, graphs, strict=True)
        ]
        self.slots = len(self._lanes)
        self._free: SimpleQueue[_Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Rows (N, …) → features float32 (N, D); what is more than the largest bucket runs in parts."""
        largest = self.sizes[-1]
        parts = [batch[start : start + largest] for start in range(0, len(batch), largest)]
        lane = self._free.get()
        try:
            features = [lane.run(part, self._bucket(len(part))) for part in parts]
        finally:
            self._free.put(lane)
        return features[0] if len(features) == 1 else np.concatenate(features)

    def warm_up(self, batch: NDArray[Any]) -> None:
        """Run ``batch`` through every lane, so that none meets its shape for the first time in service."""
        for lane, _ in itertools.product(self._lanes, range(self._runs_to_warm)):
            lane.run(batch, self._bucket(len(batch)))

    def close(self) -> None:
        """Drop buffers and sessions; nothing may run any more."""
        while not self._free.empty():
            self._free.get()
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()

    def _bucket(self, count: int) -> int:
        return next(size for size in self.sizes if size >= count)


class _Lane:
    """One batch at a time on one device."""

    def __init__(
        self, device: Device, thread: ThreadPoolExecutor | None, graphs: Iterator[int] | None
    ) -> None:
        self._device = device
        self._thread = thread
        self._graphs = graphs
        self._buffers: dict[tuple[int, ...], _Buffers] = {}

    def run(self, batch: NDArray[Any], size: int) -> NDArray[np.float32]:
        """``batch``, of at most ``size`` rows, padded to ``size``; what the padding holds is never read."""
        shape = (size, *batch.shape[1:])
        if (buffers := self._buffers.get(shape)) is None:
            buffers = self._buffers[shape] = _Buffers(
                self._device, shape, batch.dtype, next(self._graphs) if self._graphs else None
            )
        buffers.host[: len(batch)] = batch
        buffers.input.update_inplace(buffers.host)
        if self._thread is None:
            buffers.run()
        else:
            self._thread.submit(buffers.run).result()
        rows: NDArray[np.float32] = buffers.output.numpy()[: len(batch)].copy()
        return rows

    def close(self) -> None:
        for buffers in self._buffers.values():
            buffers.close()
        self._buffers.clear()
        if self._thread is not None:
            self._thread.shutdown()


class _Buffers:
    """Input and output of one shape, bound to a session once. ``graph``: the number of its CUDA graph."""

    def __init__(
        self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any], graph: int | None
    ) -> None:
        session = device.session
        self.host = np.zeros(shape, dtype)
        self._locked = device.kind == "cuda" and page_lock(self.host)
        given, features = session.get_inputs()[0].name, session.get_outputs()[0].name
        width = _width(session, given, shape, dtype)
        self.input, self.output = (
            ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device.kind, device.number)
            for shape, dtype in ((shape, dtype), ((shape[0], width), np.dtype(np.float32)))
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(given, self.input)
        self._binding.bind_ortvalue_output(features, self.output)
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        self._session = session

    def run(self) -> None:
        """From ``input`` to ``output``, both on the device."""
        self._session.run_with_iobinding(self._binding, self._options)

    def close(self) -> None:
        """Give pinned memory back."""
        if self._locked:
            page_unlock(self.host)


def _width(session: ort.InferenceSession, given: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """D: as the graph declares it, or as it comes out where the graph leaves it open."""
    declared = session.get_outputs()[0].shape[1]
    if isinstance(declared, int):
        return declared
    aside = ort.RunOptions()
    aside.add_run_config_entry("gpu_graph_id", "-1")  # not to be recorded
    return int(session.run(None, {given: np.zeros((1, *shape[1:]), dtype)}, aside)[0].shape[1])


def page_lock(array: NDArray[Any]) -> bool:
    """Pin ``array`` in memory, so that GPUs fetch it by themselves; without that CUDA copies it first.

    Whether it worked; then ``page_unlock`` must come before the array goes. ONNX Runtime has no way to say
    it in Python, so CUDA is asked: ``cudaHostRegister``.
    """
    try:
        status = _cuda().cudaHostRegister(_address(array), ctypes.c_size_t(array.nbytes), _FOR_EVERY_GPU)
    except (OSError, AttributeError) as error:
        _LOG.info("memory is not pinned: %s", error)
        return False
    if status:
        _LOG.info("memory is not pinned: cudaHostRegister gave %d", status)
    return bool(status == 0)


def page_unlock(array: NDArray[Any]) -> None:
    """Undo ``page_lock``."""
    _cuda().cudaHostUnregister(_address(array))


def _cuda() -> ctypes.CDLL:
    """CUDA's runtime, which ONNX Runtime has loaded."""
    return ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)

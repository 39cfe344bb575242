"""What it costs a picture to be encoded in another process: ``python -m benchmarks.hop``.

The encoder is played and takes no time. One front submits 224×224 pixels to it, once through a batcher of its
own process and once through an engine process and shared memory, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

import models.registry
from benchmarks.measurements import Spread
from benchmarks.played_gpu import PlayedSession
from benchmarks.run import ROOT
from benchmarks.subjects import MODEL, prepare_model
from service.host import LocalHost, batch_options
from service.metrics import Metrics
from service.registry import registry_of
from service.served import ServedModel
from service.settings import Settings
from service.shared.engine_process import run_engine
from service.shared.front import FrontHost
from service.worker import EngineMember

_WIDTH = 64
_PIXELS = np.zeros((224, 224, 3), np.uint8)


class _Instant(PlayedSession):
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.full((len(batch), 512), 512**-0.5, np.float32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hop", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--var", type=Path, default=ROOT / "var")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    bell, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bell, door, tempfile.TemporaryDirectory() as home:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = home
        settings = Settings(
            home=Path(home),
            models_dir=prepare_model(options.var),
            models=(MODEL,),
            runtime="onnxruntime",
            log_level="warning",
        )
        member = EngineMember(number=0, starts=[0], door=door, beats=[0])
        engine = spawn.Process(target=_encode, args=(settings, member))
        engine.start()
        try:
            uvloop.run(_compare(settings, bell, options.repeats, options.pictures))
        finally:
            engine.terminate()
            engine.join()


def _encode(settings: Settings, member: EngineMember) -> None:
    models.registry.open_session = _Instant
    sys.exit(run_engine(settings, member))


async def _compare(settings: Settings, bell: socket.socket, repeats: int, pictures: int) -> None:
    models.registry.open_session = _Instant
    registry = registry_of(settings)
    hosts = {
        "one process": LocalHost(registry, batch_options(settings), Metrics()),
        "front + engine": FrontHost(registry, bell=bell, names=(MODEL,), capacity=settings.max_queue),
    }
    served = {name: await host.open(MODEL) for name, host in hosts.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in hosts}
    for _ in range(repeats):
        for name, model in served.items():
            found[name].append((await _alone(model, pictures), await _together(model, pictures)))
    for name, figures in found.items():
        alone, together = (Spread.of(one) for one in zip(*figures, strict=True))
        print(f"{name}: a picture alone {alone:.3f} ms, {_WIDTH} at a time {together:.0f} pictures/s")
    for name, host in hosts.items():
        await served[name].close()
        await host.close()


async def _alone(served: ServedModel, pictures: int) -> float:
    """The median of milliseconds."""
    seconds = []
    for _ in range(pictures):
        began = time.perf_counter()
        await served.images.submit([_PIXELS])
        seconds.append(time.perf_counter() - began)
    return 1000 * sorted(seconds)[pictures // 2]


async def _together(served: ServedModel, pictures: int) -> float:
    """Pictures a second."""

    async def client() -> None:
        for _ in range(pictures // _WIDTH):
            await served.images.submit([_PIXELS])

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(_WIDTH)))
    return pictures // _WIDTH * _WIDTH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()

"""A server whose encoders are played: ``python -m benchmarks.played_gpu serve …``.

A batch takes as long as a GPU might: a millisecond and 0.05 ms a picture, asleep. Processes share the one
device through a lock on a file, whose path is in PLAYED_GPU. Features are all the same, since no benchmark
looks at them. What is left is what a server does besides encoding, which is what it is for.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import models.registry
from models.runtimes import LENGTH_STEP, RuntimeOptions
from service.cli import main

BATCH_SECONDS, ITEM_SECONDS = 1e-3, 5e-5
_DIM = 512


class PlayedSession:
    """Meets ``models.runtimes.Session``."""

    runtime, provider, precision = "played", "cuda", "fp16"
    slots = 2
    best_batch: int | None = None
    company = 1
    buckets: tuple[int, ...] = ()
    length_step = LENGTH_STEP

    def __init__(self, _: Path, options: RuntimeOptions) -> None:  # noqa: ARG002 (called by name)
        self._device = os.environ["PLAYED_GPU"]

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """One after the other, whichever process they come from."""
        with Path(self._device).open("w") as device:
            fcntl.flock(device, fcntl.LOCK_EX)
            time.sleep(BATCH_SECONDS + ITEM_SECONDS * len(batch))
        return np.full((len(batch), _DIM), _DIM**-0.5, np.float32)

    def warm_up(self, batch: NDArray[Any]) -> None:
        self.run(batch)

    def close(self) -> None: ...


if "PLAYED_GPU" in os.environ:  # here, so that worker processes, which import this, have it too
    models.registry.open_session = PlayedSession

if __name__ == "__main__":
    main()

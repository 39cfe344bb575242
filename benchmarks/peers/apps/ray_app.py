"""Ray Serve with ``@serve.batch``, as its guide to dynamic request batching has it, over ONNX Runtime."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
from encoders import encoder
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Clip:
    """A replica: pictures as raw bodies, texts as JSON."""

    def __init__(self, engine: str, model: Path) -> None:
        self.model = encoder(engine, model)
        self.pool = ThreadPoolExecutor(os.cpu_count())

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def images(self, pictures: list[bytes]) -> list[np.ndarray]:
        """One row a picture."""
        return list(self.model.images(list(self.pool.map(self.model.decode, pictures))))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def texts(self, texts: list[str]) -> list[np.ndarray]:
        """One row a text."""
        return list(self.model.texts(texts))

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """Whichever the body is."""
        if request.method == "GET":
            return {"embedding": []}
        if request.headers["content-type"] == "image/jpeg":
            row = await self.images(await request.body())
        else:
            row = await self.texts((await request.json())["text"])
        return {"embedding": row.tolist()}


if __name__ == "__main__":
    port, engine, model = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    here = str(Path(__file__).parent)
    ray.init(
        include_dashboard=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": here, "OMP_NUM_THREADS": str(os.cpu_count())}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Clip.bind(engine, model))
    while True:
        time.sleep(60)

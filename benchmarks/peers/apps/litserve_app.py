"""LitServe: batches of up to 32 within 10 ms, decoded in parallel, as its guide to speed has it."""

from __future__ import annotations

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
from encoders import encoder

_BATCHING = {"max_batch_size": 32, "batch_timeout": 0.01}


class ClipApi(litserve.LitAPI):
    """One tower; ``api_path`` says which."""

    def __init__(self, *, engine: str, model: Path, **options: Any) -> None:
        super().__init__(**options)
        self._engine = engine
        self._files = model

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model in the worker's process."""
        self.model = encoder(self._engine, self._files)
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def unbatch(self, output: Any) -> list[Any]:
        """Features (N, D) → one row a request."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """A row as JSON."""
        return {"embedding": output.tolist()}


class Images(ClipApi):
    """``{"image": base64}``."""

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The picture's file."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[Any]:
        """Decode them all at once."""
        return list(self.pool.map(self.model.decode, inputs))

    def predict(self, x: list[Any]) -> Any:
        """Features of a batch."""
        return self.model.images(x)


class Texts(ClipApi):
    """``{"text": ...}``."""

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Nothing to do."""
        return inputs

    def predict(self, x: list[str]) -> Any:
        """Features of a batch."""
        return self.model.texts(x)


if __name__ == "__main__":
    port, engine, model = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    apis = [
        kind(engine=engine, model=model, api_path=path, **_BATCHING)
        for kind, path in ((Images, "/image"), (Texts, "/text"))
    ]
    litserve.LitServer(apis, accelerator="cpu").run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning"
    )

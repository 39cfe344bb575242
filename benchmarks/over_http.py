"""clipserve as its users run it: ``clipserve serve`` in a process of its own, loaded over HTTP."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from benchmarks.client import Generator, Load
from benchmarks.pictures import labels
from benchmarks.processes import Server, free_port, serving
from benchmarks.subjects import MODEL, Configuration
from models.manifest import ModelManifest
from prompts.labels import Label
from prompts.store import DirectoryStore, StoredClassifier
from prompts.templates import TemplateSets


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One kind of request at several numbers of clients. ``items`` is how many pictures or texts it holds."""

    measure: str
    requests: Sequence[bytes]
    widths: Sequence[int]
    items: int = 1

    def run(
        self, generator: Generator, server: Server, seconds: float
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Clients and figures, one number of clients after the other."""
        for width in self.widths:
            load = Load(
                port=server.port,
                server_pid=server.pid,
                requests=self.requests,
                concurrency=width,
                seconds=seconds,
                items=self.items,
            )
            yield width, generator.measure(load)


@contextmanager
def clipserve(
    models: Path, configuration: Configuration, home: Path, log: Path, *, fast_decode: bool = False
) -> Iterator[Server]:
    """A ready server."""
    port = free_port()
    settings = {
        "CLIPSERVE_PORT": str(port),
        "CLIPSERVE_HOME": str(home),
        "CLIPSERVE_MODELS_DIR": str(models),
        "CLIPSERVE_MODELS": MODEL,
        "CLIPSERVE_LOG_LEVEL": "warning",
        "CLIPSERVE_ACCESS_LOG": "false",
        "CLIPSERVE_FAST_DECODE": str(fast_decode).lower(),
    }
    command = [sys.executable, "-m", "service", "serve"]
    env = settings | configuration.environment
    with serving(command, port=port, ready="/health/ready", log=log, env=env) as server:
        yield server


@contextmanager
def home_with_classifiers(models: Path, sizes: Sequence[int]) -> Iterator[Path]:
    """A server's home with a classifier ``labels-N`` of N classes for each size.

    Their class embeddings are random: scoring costs the same, and encoding 100,000 labels takes minutes.
    """
    manifest = ModelManifest.read(models / MODEL)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as home:
        store = DirectoryStore(Path(home) / "classifiers")
        for size in sizes:
            matrix = rng.standard_normal((size, manifest.embedding_dim), np.float32)
            matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
            store.put(
                StoredClassifier(
                    name=f"labels-{size}",
                    labels=tuple(Label(label) for label in labels(size)),
                    template_set=TemplateSets().get("photo"),
                    model=MODEL,
                    model_digest=manifest.digest,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    matrix=matrix,
                )
            )
        yield Path(home)


def build_classifier(server: Server, classes: Sequence[str], template_set: str) -> float:
    """Seconds from ``PUT /classifiers/…`` until it is ready.

    Raises:
        RuntimeError: it failed.
    """
    url = f"http://127.0.0.1:{server.port}/classifiers/built"
    body = json.dumps({"labels": classes, "template_set": template_set}).encode()
    began = time.perf_counter()
    state = _json(Request(url, body, {"Content-Type": "application/json"}, method="PUT"))
    while state["state"] == "building":
        time.sleep(0.05)
        state = _json(Request(url))
    if state["state"] != "ready":
        raise RuntimeError(f"the classifier was not built: {state}")
    return time.perf_counter() - began


def _json(request: Request) -> dict[str, object]:
    with urlopen(request, timeout=120) as answer:
        found: dict[str, object] = json.load(answer)
        return found

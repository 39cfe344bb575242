"""``make bench-gpu``: encoders side by side on a GPU, and the service that feeds them, in under 8 minutes.

Self-contained: it exports its models with seeded weights, needs no network, and leaves out what time does
not allow or what is not installed, by name. ``--tiny`` runs all of it on a CPU with a model of two layers,
to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnxruntime as ort
from PIL import Image
from rich.console import Console

from benchmarks import report
from benchmarks.client import Generator, generator
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.gpu import encoders, tables, watch
from benchmarks.gpu.setting import FULL, TINY, Setting, export, name_of
from benchmarks.in_process import DECODE, DECODING, apart, timed
from benchmarks.layout import Layout
from benchmarks.measurements import Key, Measurements
from benchmarks.over_http import Sweep
from benchmarks.pictures import photo
from benchmarks.processes import Server, exit_when_terminated, free_port, serving
from benchmarks.requests import post, raw
from benchmarks.run import ROOT, terminal
from models.cores import available_cores
from models.manifest import Precision
from models.registry import ModelRegistry
from models.runtimes import Provider, RuntimeOptions

_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
Figures = Iterable[tuple[Key, dict[str, float]]]
Step = tuple[str, Callable[[], Figures]]


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.run", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with a model of two layers")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var", help="where the exported models are kept")
    options = parser.parse_args()
    exit_when_terminated()
    console, under = terminal(), conditions() | watch.facts()
    setting = TINY if options.tiny else FULL
    with cores_used_by_others(under), generator() as clients:
        found, left_out = Bench(setting, options.var, clients, console).run()
    under["left_out"] = "; ".join(left_out) or "nothing"
    pages = tables.sheets(found, under["cores"])
    folder = options.output / folder_name(under)
    report.write(folder, "gpu-tiny" if options.tiny else "gpu", found, under, pages)
    report.show(pages, console)
    console.print(f"left out: {under['left_out']}\nwritten to {folder}")


class Bench:
    """One run: every step has its own process, and a step that fails takes no other with it."""

    def __init__(self, setting: Setting, var: Path, clients: Generator, console: Console) -> None:
        self._setting = setting
        self._models = var / "bench-gpu-models"
        self._cache = var / "bench-gpu-cache"
        self._log = var / "bench-logs" / "gpu.log"
        self._clients = clients
        self._console = console

    def run(self) -> tuple[Measurements, list[str]]:
        """Everything there is time for; gives the figures, and what was left out and why."""
        began, found, left_out = time.perf_counter(), Measurements(), []
        for name, step in self._steps():
            minutes = (time.perf_counter() - began) / 60
            if minutes > self._setting.minutes:
                left_out.append(f"{name}: no time")
                continue
            self._console.log(f"{minutes:.1f} min: {name}")
            try:
                for key, figures in step():
                    found.add(key, figures)
            except Exception as error:  # whatever a runtime that is not what it should be raises
                reason = str(error).strip().splitlines() or [type(error).__name__]
                left_out.append(f"{name}: {reason[0][:200]}")
        return found, left_out

    def _steps(self) -> Iterator[Step]:
        setting, models, cache = self._setting, self._models, self._cache
        pictures = [photo(500, 375, seed=seed) for seed in range(64)]
        first, *_ = setting.architectures
        for architecture in setting.architectures:
            yield f"export {architecture}", partial(self._export, architecture)
            yield from self._encoders(architecture)
            if architecture == first:
                yield "decoding", partial(apart, _decoding, models / name_of(first, "fp16"), pictures)
                yield from self._services(first, pictures)
                yield "soak", partial(apart, encoders.soak, setting, models, cache, first, "fp16")

    def _encoders(self, architecture: str) -> Iterator[Step]:
        setting, models, cache = self._setting, self._models, self._cache
        providers: list[Provider] = [setting.provider]
        if setting.provider == "cuda" and "TensorrtExecutionProvider" in ort.get_available_providers():
            providers.append("tensorrt")
        for precision in reversed(_PRECISIONS):
            what = f"{precision}, {architecture}"
            yield (
                f"parity {what}",
                partial(apart, encoders.parity, setting, models, cache, architecture, precision),
            )
            for provider in providers:
                bare = (setting, models, architecture, precision, provider)
                yield f"bare {provider} {what}", partial(apart, encoders.bare_session, *bare)
                for graphs in (False, True) if provider == "cuda" else (False,):
                    own = (setting, models, cache, architecture, precision, provider, graphs)
                    yield (
                        f"clipserve {provider}{' graphs' if graphs else ''} {what}",
                        partial(apart, encoders.served_session, *own),
                    )
        yield f"torch, {architecture}", partial(apart, encoders.torch_encoder, setting, architecture)

    def _services(self, architecture: str, pictures: list[bytes]) -> Iterator[Step]:
        for layout in self._setting.layouts:
            yield f"over HTTP, {layout}", partial(self._serve, architecture, pictures, layout)

    def _export(self, architecture: str) -> Figures:
        self._models.mkdir(parents=True, exist_ok=True)
        apart(export, self._models, architecture, _PRECISIONS)
        return ()

    def _serve(self, architecture: str, pictures: list[bytes], layout: Layout) -> Figures:
        model = name_of(architecture, "fp16")
        size = ModelRegistry(self._models).manifest(model).image.size
        pixels = [post("/embed", _bitmap(one, size), "image/bmp") for one in pictures]
        with self._server(model, layout) as server:
            for measure, requests in ((tables.JPEG, raw("/embed", pictures)), (tables.PIXELS, pixels)):
                for clients in self._setting.clients:
                    sweep = Sweep(measure=measure, requests=requests, widths=(clients,))
                    seen: dict[str, float] = {}
                    with watch.watched(seen):
                        (answer,) = sweep.run(self._clients, server, 2 * self._setting.seconds)
                    yield Key(tables.service(architecture, layout), measure, clients), answer[1] | seen

    @contextmanager
    def _server(self, model: str, layout: Layout) -> Iterator[Server]:
        port = free_port()
        with tempfile.TemporaryDirectory() as home:
            env = {
                "PORT": str(port),
                "HOME": home,
                "CACHE_DIR": str(self._cache),
                "MODELS_DIR": str(self._models),
                "MODELS": model,
                "RUNTIME": "onnxruntime",
                "PROVIDER": self._setting.provider,
                "BATCH_BUCKETS": "on",
                "MAX_BATCH": str(self._setting.max_batch),
                "LOG_LEVEL": "warning",
                "ACCESS_LOG": "false",
            }
            command = [sys.executable, "-m", "service", "serve"]
            named = layout.environment | {f"CLIPSERVE_{name}": value for name, value in env.items()}
            with serving(command, port=port, ready="/health/ready", log=self._log, env=named) as server:
                yield server


def _decoding(folder: Path, pictures: list[bytes]) -> list[tuple[Key, dict[str, float]]]:
    """JPEGs a second on all cores, with nothing else done."""
    from concurrent.futures import ThreadPoolExecutor

    options = RuntimeOptions(runtime="onnxruntime", provider="cpu", precision="fp32")
    preprocess = ModelRegistry(folder.parent, options=options).load(folder.name).preprocess
    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        figures = timed(lambda: list(pool.map(preprocess, pictures)), len(pictures), 2.0)
    return [(Key(DECODING, DECODE, cores), figures)]


def _bitmap(jpeg: bytes, size: int) -> bytes:
    """The model's own pixels in a file that is hardly decoded."""
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((size, size)).save(file, "BMP")
    return file.getvalue()


if __name__ == "__main__":
    main()

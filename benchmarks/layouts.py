"""How a node with a fast GPU is best fed: by one process of threads, by several whole servers on one port, or
by fronts that share one engine process.

``python -m benchmarks.layouts`` writes ``layouts.md`` beside the other results; docs/gpu.md tells what
follows from it. The GPU is played (``benchmarks.played_gpu``), everything else is real. Pictures come as
JPEGs, which are decoded, and as BMPs of the model's own size, which hardly are: with those it shows how
many requests a process takes apart from decoding.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from benchmarks import report
from benchmarks.client import Generator, generator
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.in_process import DECODE, DECODING, apart, decoding
from benchmarks.layout import Layout
from benchmarks.measurements import Key, Measurements, Spread
from benchmarks.over_http import Sweep
from benchmarks.pictures import photo
from benchmarks.played_gpu import BATCH_SECONDS, ITEM_SECONDS
from benchmarks.processes import Server, exit_when_terminated, free_port, serving
from benchmarks.requests import post, raw
from benchmarks.run import ROOT, terminal
from benchmarks.subjects import MODEL, prepare_model

_CLIENTS = (1, 64)
_JPEG, _BMP = "JPEG 500×375", "BMP 224×224"


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--fronts", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var")
    options = parser.parse_args()
    exit_when_terminated()
    layouts = [Layout(count) for count in options.workers]
    layouts += [Layout(count, shared_engine=True) for count in options.fronts]
    console, under, found = terminal(), conditions(), Measurements()
    models = prepare_model(options.var)
    pictures = [photo(500, 375, seed=seed) for seed in range(64)]
    with cores_used_by_others(under), generator() as clients:
        for repeat in range(options.repeats):
            console.log(f"repeat {repeat + 1} of {options.repeats}")
            for key, figures in apart(decoding, models, pictures, options.seconds):
                found.add(key, figures)
            for layout in layouts:
                with _server(models, layout, options.var / "bench-logs" / "layouts.log") as server:
                    _measure(found, clients, server, pictures, layout, options.seconds)
    pages = [sheet(found, layouts, under["cores"])]
    report.write(options.output / folder_name(under), "layouts", found, under, pages)
    report.show(pages, console)


def sheet(found: Measurements, layouts: Sequence[Layout], cores: int) -> report.Sheet:
    """Rates, latencies and costs of each layout, with the decode limit of the same repeat."""
    limit = found.spread(Key(DECODING, DECODE, cores), "rate")
    return report.Sheet(
        title=(
            f"Feeding a GPU that takes {1000 * BATCH_SECONDS:g} ms a batch and {1000 * ITEM_SECONDS:g} ms a"
            f" picture: {cores} cores decode {limit:.0f} JPEGs a second"
        ),
        columns=(
            *("processes", "pictures", "clients", "pictures/s", "÷ decode limit", "p50 ms", "p99 ms"),
            *("server CPU ms a picture", "client CPU ms a picture"),
        ),
        rows=[
            _row(found, Key(str(layout), kind, width), cores)
            for layout in layouts
            for kind in (_JPEG, _BMP)
            for width in _CLIENTS
        ],
    )


def _row(found: Measurements, key: Key, cores: int) -> list[str]:
    limits = found.repeats(Key(DECODING, DECODE, cores), "rate")
    rates = found.repeats(key, "rate")
    share = Spread.of(rate / limit for rate, limit in zip(rates, limits, strict=True))
    server, client = (
        Spread.of(1000 * value for value in found.repeats(key, figure)).median
        for figure in ("cpu_seconds_per_item", "client_cpu_seconds_per_item")
    )
    return [
        *(key.subject, key.measure, str(key.width), f"{Spread.of(rates):.0f}"),
        f"{share:.2f}" if key.measure == _JPEG else "",
        *(f"{found.spread(key, figure).median:.1f}" for figure in ("p50_ms", "p99_ms")),
        *(f"{server:.2f}", f"{client:.2f}"),
    ]


def _measure(
    found: Measurements,
    clients: Generator,
    server: Server,
    pictures: Sequence[bytes],
    layout: Layout,
    seconds: float,
) -> None:
    bitmaps = [post("/embed", _bitmap(one), "image/bmp") for one in pictures]
    for kind, requests in ((_JPEG, raw("/embed", pictures)), (_BMP, bitmaps)):
        warm = Sweep(measure=kind, requests=requests, widths=(16,))
        list(warm.run(clients, server, 0.5))
        for width, figures in Sweep(measure=kind, requests=requests, widths=_CLIENTS).run(
            clients, server, seconds
        ):
            found.add(Key(str(layout), kind, width), figures)


@contextmanager
def _server(models: Path, layout: Layout, log: Path) -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        env = {
            "PLAYED_GPU": str(Path(home) / "device"),
            "CLIPSERVE_PORT": str(port),
            "CLIPSERVE_HOME": home,
            "CLIPSERVE_MODELS_DIR": str(models),
            "CLIPSERVE_MODELS": MODEL,
            "CLIPSERVE_RUNTIME": "onnxruntime",
            "CLIPSERVE_LOG_LEVEL": "warning",
            "CLIPSERVE_ACCESS_LOG": "false",
        }
        command = [sys.executable, "-m", "benchmarks.played_gpu", "serve"]
        env |= layout.environment
        with serving(command, port=port, ready="/health/ready", log=log, env=env) as server:
            yield server


def _bitmap(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((224, 224)).save(file, "BMP")
    return file.getvalue()


if __name__ == "__main__":
    main()

"""Which division of the cores is best: inference threads against decode threads, on 2 cores and on all.

``python -m benchmarks.threads`` writes ``threads.md`` beside the other results; docs/tuning.md tells what
follows from it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import report
from benchmarks.client import generator
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.measurements import Key, Measurements
from benchmarks.over_http import Sweep, clipserve
from benchmarks.pictures import photo
from benchmarks.processes import exit_when_terminated
from benchmarks.requests import raw
from benchmarks.run import ROOT, terminal
from benchmarks.subjects import Configuration, configurations, prepare_model

_CLIENTS = (1, 16)


@dataclass(frozen=True, kw_only=True)
class Division:
    """So many cores for the server, and how many threads of each kind; 0 is the default of the setting."""

    cores: int
    inference: int
    decode: int

    @property
    def environment(self) -> dict[str, str]:
        """For a server."""
        return {
            "CLIPSERVE_INFERENCE_THREADS": str(self.inference),
            "CLIPSERVE_DECODE_THREADS": str(self.decode),
        }

    def name(self, configuration: Configuration) -> str:
        """As the table shows it."""
        inference, decode = self.inference or "default", self.decode or "default"
        return f"{configuration.name}, {self.cores} cores: inference {inference}, decode {decode}"


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var")
    options = parser.parse_args()
    exit_when_terminated()
    console, under, found = terminal(), conditions(), Measurements()
    models = prepare_model(options.var)
    log = options.var / "bench-logs" / "threads.log"
    sweep = Sweep(measure="/embed", requests=raw("/embed", _pictures()), widths=_CLIENTS)
    with cores_used_by_others(under), tempfile.TemporaryDirectory() as home, generator() as clients:
        for repeat in range(options.repeats):
            for configuration in configurations(all_of_them=False):
                for division in divisions(sorted({2, under["cores"]})):
                    name = division.name(configuration)
                    console.log(f"repeat {repeat + 1} of {options.repeats}: {name}")
                    with (
                        held_to(division.cores, division.environment),
                        clipserve(models, configuration, Path(home), log) as server,
                    ):
                        list(replace(sweep, widths=(8,)).run(clients, server, 0.5))
                        for width, figures in sweep.run(clients, server, options.seconds):
                            found.add(Key(name, sweep.measure, width), figures)
    folder = options.output / folder_name(under)
    pages = [report.over_http(found)]
    report.write(folder, "threads", found, under, pages)
    report.show(pages, console)


def divisions(core_counts: Sequence[int]) -> Iterator[Division]:
    """The defaults, then fewer threads of one kind or of the other."""
    for cores in core_counts:
        yield Division(cores=cores, inference=0, decode=0)
        yield Division(cores=cores, inference=0, decode=1)
        yield Division(cores=cores, inference=max(1, cores - 1), decode=0)
        if cores > 2:
            yield Division(cores=cores, inference=cores // 2, decode=cores // 2)


@contextmanager
def held_to(cores: int, environment: dict[str, str]) -> Iterator[None]:
    """Servers that start within the block have the first ``cores`` cores and ``environment``."""
    allowed = os.sched_getaffinity(0)
    os.environ.update(environment)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        for name in environment:
            del os.environ[name]


def _pictures() -> list[bytes]:
    return [photo(500, 375, seed=seed) for seed in range(64)]


if __name__ == "__main__":
    main()

"""``make bench``: measure everything in turn, several times over, and write the results."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import plots, report
from benchmarks.client import Generator, generator
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.in_process import apart, bare_session, decoding, encoders, open_clip_classifier
from benchmarks.in_turn import in_turn
from benchmarks.measurements import Key, Measurements
from benchmarks.over_http import build_classifier, clipserve, home_with_classifiers
from benchmarks.pictures import labels
from benchmarks.plan import BUILD, FULL, QUICK, START, Plan
from benchmarks.processes import Server, exit_when_terminated
from benchmarks.subjects import Configuration, configurations, prepare_model

ROOT = Path(__file__).resolve().parent.parent
_TEMPLATES = 80

Figures = Iterable[tuple[Key, dict[str, float]]]
Step = tuple[str, Callable[[], Figures]]


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main figures only, in under three minutes")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var", help="where the exported model is kept")
    options = parser.parse_args()
    exit_when_terminated()
    console, under = terminal(), conditions()
    plan = QUICK if options.quick else FULL
    bench = _Bench(plan=plan, var=options.var, console=console)
    with cores_used_by_others(under):
        found = bench.run()
    pages = report.sheets(found, under["cores"])
    folder = options.output / folder_name(under)
    report.write(folder, "quick" if options.quick else "bench", found, under, pages)
    plots.draw(found, bench.configurations[-1].name, folder)
    report.show(pages, console)
    console.print(f"written to {folder}")


def terminal() -> Console:
    """The terminal; what is written to a file is not broken into its 80 columns."""
    console = Console(log_path=False)
    return console if console.is_terminal else Console(log_path=False, width=200)


class _Bench:
    """One run: each repeat takes every measurement in turn, so that drifts of the machine hit all alike."""

    def __init__(self, *, plan: Plan, var: Path, console: Console) -> None:
        self.configurations = configurations(all_of_them=plan.extended)
        self._plan = plan
        self._var = var
        self._console = console
        self._models = prepare_model(var)
        self._found = Measurements()

    def run(self) -> Measurements:
        """Measure, telling on the console what is under way."""
        began = time.perf_counter()
        with (
            generator() as clients,
            home_with_classifiers(self._models, self._plan.classifier_sizes) as home,
            tempfile.TemporaryDirectory() as bare,
        ):
            self._bare_home = Path(bare)
            for one in self.configurations:  # compile, unmeasured: a cache that is warm is what users have
                self._console.log(f"first start of {one.name}")
                for place in (home, self._bare_home):
                    with self._server(one, place):
                        pass
            for repeat in range(self._plan.repeats):
                for what, figures in self._steps(clients, home, repeat):
                    self._console.log(f"repeat {repeat + 1} of {self._plan.repeats}: {what}")
                    for key, values in figures():
                        self._found.add(key, values)
        self._console.print(f"measured in {(time.perf_counter() - began) / 60:.1f} minutes")
        return self._found

    def _steps(self, clients: Generator, home: Path, repeat: int) -> Iterator[Step]:
        """What is under way, and the call that measures it."""
        plan, models = self._plan, self._models
        yield "decoding", partial(apart, decoding, models, plan.pictures, plan.seconds)
        for one in self.configurations:
            yield one.bare, partial(apart, bare_session, models, one, plan.seconds)
            inputs = (models, one, plan.pictures, plan.texts, plan.seconds)
            yield f"{one.name} in process", partial(apart, encoders, *inputs)
            yield f"{one.name} over HTTP", partial(self._serve, one, clients, home, repeat)
        if plan.open_clip_classes:
            names = labels(plan.open_clip_classes, seed=repeat)
            yield "open_clip", partial(apart, open_clip_classifier, names)

    def _serve(
        self, configuration: Configuration, clients: Generator, home: Path, repeat: int
    ) -> Iterator[tuple[Key, dict[str, float]]]:
        """Start a server and put every kind of request to it."""
        plan, name = self._plan, configuration.name
        sweeps = list(plan.sweeps)
        if configuration is self.configurations[-1]:
            sweeps += plan.further_sweeps
        with self._server(configuration, self._bare_home) as server:  # there are no classifiers to read
            yield Key(name, START), {"seconds": server.start_seconds}
        with self._server(configuration, home) as server:
            plan.warm_up(clients, server)
            inputs = (self._models, configuration, server.port, plan.pictures, 4 * plan.seconds)
            yield from apart(in_turn, *inputs)
            for sweep in sweeps:
                for width, figures in sweep.run(clients, server, plan.seconds):
                    yield Key(name, sweep.measure, width), figures
            names = self._new_names(configuration, repeat)
            seconds = build_classifier(server, names, "openai-imagenet")
            yield Key(name, BUILD), {"rate": len(names) * _TEMPLATES / seconds}

    def _server(self, configuration: Configuration, home: Path) -> AbstractContextManager[Server]:
        log = self._var / "bench-logs" / f"{configuration.name.replace(' ', '-')}.log"
        return clipserve(self._models, configuration, home, log)

    def _new_names(self, configuration: Configuration, repeat: int) -> list[str]:
        """Classes that were never built before: servers share a home, and what one built the next knows."""
        turn = repeat * len(self.configurations) + self.configurations.index(configuration)
        count = self._plan.built_classes
        return labels((turn + 1) * count)[turn * count :]


if __name__ == "__main__":
    main()

"""``make bench-peers``: clipserve and its peers with the same weights under the same load, one by one."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.client import Generator, ask, generator
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.measurements import Key, Measurements, Spread
from benchmarks.over_http import Sweep, clipserve
from benchmarks.peers import environments
from benchmarks.peers.registry import Peer, peers
from benchmarks.peers.weights import ModelFiles, prepare_weights
from benchmarks.pictures import photo, prompts
from benchmarks.processes import Server, exit_when_terminated, free_port, serving
from benchmarks.requests import embed_texts, raw
from benchmarks.run import ROOT, terminal
from benchmarks.subjects import MODEL, Configuration, configurations, prepare_model
from models.registry import ModelRegistry

PICTURE = "one JPEG of 500×375"
LARGE = "one JPEG of 4000×3000"
TEXT = "one short text"
_SAME = 0.99  # cosine to the reference below which a peer does not run the same model


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A server, and how it is asked."""

    name: str
    start: Callable[[], AbstractContextManager[Server]]
    image: Callable[[bytes], bytes]
    text: Callable[[str], bytes]
    vector: Callable[[Any], list[float]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every contestant is asked, and the right answer to the first picture and the first text."""

    pictures: list[bytes]
    large: list[bytes]
    texts: list[str]
    picture_features: NDArray[np.float32]
    text_features: NDArray[np.float32]

    def sweeps(self, one: Contestant) -> Iterator[Sweep]:
        """Their requests in the words of ``one``."""
        yield Sweep(measure=PICTURE, requests=[one.image(file) for file in self.pictures], widths=(1, 64))
        yield Sweep(measure=LARGE, requests=[one.image(file) for file in self.large], widths=(16,))
        yield Sweep(measure=TEXT, requests=[one.text(line) for line in self.texts], widths=(1, 32))


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.run", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="the least time of one measurement")
    parser.add_argument("--only", default="", help="only contestants whose name contains this")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var")
    options = parser.parse_args()
    exit_when_terminated()
    console, under, found = terminal(), conditions(), Measurements()
    models = prepare_model(options.var)
    files, inputs = prepare_weights(models, options.var), _inputs(models)
    failed: dict[str, str] = {}
    with cores_used_by_others(under), tempfile.TemporaryDirectory() as home, generator() as clients:
        contestants = _clipserve(models, Path(home), options.var)
        theirs, shown = _peers(files, options.var, failed)
        under["peers"] = shown
        contestants = [one for one in [*contestants, *theirs] if options.only in one.name]
        for repeat in range(options.repeats):
            for one in contestants:
                console.log(f"repeat {repeat + 1} of {options.repeats}: {one.name}")
                try:
                    _measure(one, inputs, clients, options.seconds, found)
                except (RuntimeError, OSError, EOFError) as error:
                    failed[one.name] = str(error)
                    console.log(f"{one.name} failed: {error}")
    under["failed"] = failed
    pages = [_ratios(found), report.over_http(found)]
    folder = options.output / folder_name(under)
    report.write(folder, "peers", found, under, pages)
    report.show(pages, console)


def _inputs(models: Path) -> Inputs:
    pictures = [photo(500, 375, seed=seed) for seed in range(64)]
    texts = prompts(2_048)
    model = ModelRegistry(models, options=configurations()[0].options).load(MODEL)
    inputs = Inputs(
        pictures=pictures,
        large=[photo(4000, 3000, seed=seed) for seed in range(4)],
        texts=texts,
        picture_features=model.encode_images(pictures[:1])[0],
        text_features=model.encode_texts(texts[:1])[0],
    )
    model.close()
    return inputs


def _clipserve(models: Path, home: Path, var: Path) -> list[Contestant]:
    def contestant(configuration: Configuration, *, fast_decode: bool = False) -> Contestant:
        log = var / "bench-logs" / f"peers-{configuration.name.replace(' ', '-')}.log"
        return Contestant(
            name=f"clipserve, {configuration.name}" + (", fast decode" if fast_decode else ""),
            start=partial(clipserve, models, configuration, home, log, fast_decode=fast_decode),
            image=lambda picture: raw("/embed", [picture])[0],
            text=lambda text: embed_texts([text])[0],
            vector=lambda answer: list(answer["embeddings"][0]["embedding"]),
        )

    found = configurations()
    return [*(contestant(one) for one in found), contestant(found[-1], fast_decode=True)]


def _peers(
    files: ModelFiles, var: Path, failed: dict[str, str]
) -> tuple[list[Contestant], dict[str, dict[str, str]]]:
    """Those that can be installed, and what was installed; the others go into ``failed``."""
    contestants, shown = [], {}
    for peer in peers():
        try:
            folder = environments.bin_folder(peer, var).absolute()
            shown[peer.name] = environments.versions(peer, folder)
        except environments.InstallError as error:
            failed[peer.name] = f"cannot be installed: {error}"
            continue
        contestants.append(
            Contestant(
                name=peer.name,
                start=partial(_start, peer, folder, files, var),
                image=peer.image,
                text=peer.text,
                vector=peer.vector,
            )
        )
    return contestants, shown


def _start(peer: Peer, folder: Path, files: ModelFiles, var: Path) -> AbstractContextManager[Server]:
    port = free_port()
    log = var / "bench-logs" / f"peers-{peer.environment}.log"
    command = peer.command(folder, port, files)
    return serving(command, port=port, ready=peer.ready, log=log, env=peer.variables)


def _measure(
    one: Contestant, inputs: Inputs, clients: Generator, seconds: float, found: Measurements
) -> None:
    """Start the server, see that it runs the same model, and put every kind of request to it.

    Raises:
        RuntimeError: it did not start, gave another status than 200, or features of another model.
    """
    with one.start() as server:
        found.add(Key(one.name, "start"), {"seconds": server.start_seconds})
        for what, request, right in (
            ("picture", one.image(inputs.pictures[0]), inputs.picture_features),
            ("text", one.text(inputs.texts[0]), inputs.text_features),
        ):
            given = np.array(one.vector(json.loads(ask(server.port, request))))
            cosine = float(given @ right / np.linalg.norm(given))
            found.add(Key(one.name, f"cosine of a {what}"), {"cosine": cosine})
            if cosine < _SAME:
                raise RuntimeError(f"its features of a {what} have cosine {cosine:.4f} to the reference's")
        for sweep in inputs.sweeps(one):
            list(replace(sweep, widths=(8,)).run(clients, server, seconds / 4))  # to warm up
            for width, figures in sweep.run(clients, server, seconds):
                found.add(Key(one.name, sweep.measure, width), figures)


def _ratios(found: Measurements) -> report.Sheet:
    """Clipserve's medians over each peer's, for every measure both have."""
    names = list(dict.fromkeys(key.subject for key in found.samples))
    ours = [name for name in names if name.startswith("clipserve")]
    rows = []
    for theirs in names:
        for key in found.of_subject(theirs):
            if theirs in ours or "p99_ms" not in found.samples[key]:
                continue
            others = [Key(name, key.measure, key.width) for name in ours]
            rates = [_over(found, other, key, "rate") for other in others]
            p50s = [_over(found, other, key, "p50_ms") for other in others]
            rows.append([theirs, key.measure, str(key.width), *rates, *p50s])
    columns = [f"{name.removeprefix('clipserve, ')}: {what}" for what in ("rate", "p50") for name in ours]
    return report.Sheet(title="clipserve ÷ peer", columns=("peer", "request", "clients", *columns), rows=rows)


def _over(found: Measurements, ours: Key, theirs: Key, figure: str) -> str:
    if ours not in found.samples:
        return ""
    pairs = zip(found.repeats(ours, figure), found.repeats(theirs, figure), strict=False)
    return f"{Spread.of(one / other for one, other in pairs):.2f}"


if __name__ == "__main__":
    main()

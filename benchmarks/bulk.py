"""``clipserve embed`` beside the bare pipeline, in turn: what reading, keeping account and writing cost it.

    python -m benchmarks.bulk

The bare pipeline decodes pictures that are in memory already and throws their features away. The job reads a
folder or tars, keeps account of every key and writes Parquet, up to and with the renaming of the last file.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice
from pathlib import Path
from threading import Event

from benchmarks import report
from benchmarks.conditions import conditions, cores_used_by_others, folder_name
from benchmarks.in_process import BATCH, BOTH, Figures, apart, decode_ahead, load_model, timed
from benchmarks.measurements import Key, Measurements, Spread
from benchmarks.pictures import photo
from benchmarks.run import ROOT, terminal
from benchmarks.subjects import Configuration, configurations, prepare_model
from models.cores import available_cores
from service.bulk.failures import Failures
from service.bulk.inputs import find_sources
from service.bulk.job import Job
from service.bulk.output import Layout, open_output
from service.bulk.pipeline import Pipeline

FOLDER, TARS = "clipserve embed, a folder", "clipserve embed, tars"
_DIFFERENT, _FEWEST, _SHARDS, _MAX_BATCH = 64, 256, 4, 32


def main() -> None:
    """Measure every runtime at its ends, several times over, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, about")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--var", type=Path, default=ROOT / "var", help="where the exported model is kept")
    options = parser.parse_args()
    console, under, found = terminal(), conditions(), Measurements()
    models, subjects = prepare_model(options.var), configurations(all_of_them=False)
    pictures = [photo(500, 375, seed=seed) for seed in range(_DIFFERENT)]
    with cores_used_by_others(under), tempfile.TemporaryDirectory() as place:
        for repeat in range(options.repeats):
            for one in subjects:
                console.log(f"repeat {repeat + 1}: {one.name}")
                bare = apart(bare_pipeline, models, one, pictures, options.seconds)
                wanted = max(_FEWEST, int(bare[0][1]["rate"] * options.seconds))
                for what, names in _inputs(Path(place, f"{repeat}-{one.name}"), pictures, wanted).items():
                    bare += apart(job, models, one, what, names)
                for key, figures in bare:
                    found.add(key, figures)
    pages = [_sheet(found, subjects)]
    report.write(options.output / folder_name(under), "bulk", found, under, pages)
    report.show(pages, console)


def bare_pipeline(
    models: Path, configuration: Configuration, pictures: Sequence[bytes], seconds: float
) -> Figures:
    """Decode + encode in process, as ``make bench`` has it."""
    model = load_model(models, configuration)
    with ThreadPoolExecutor(available_cores()) as decoders, ThreadPoolExecutor(model.image.slots) as slots:
        both, calls, began = (
            decode_ahead(model, decoders, slots, cycle(pictures)),
            count(),
            time.process_time(),
        )
        figures = timed(lambda: (next(calls), next(both)), BATCH, seconds)
        cpu = (time.process_time() - began) / (next(calls) * BATCH)
        return [(Key(configuration.name, BOTH, BATCH), figures | {"cpu_ms": 1000 * cpu})]


def job(models: Path, configuration: Configuration, what: str, names: Sequence[str]) -> Figures:
    """A whole job, but for the start of Python and the loading of the model."""
    model = load_model(models, configuration)
    layout = Layout(model=model.name, digest=model.manifest.digest, dim=model.manifest.embedding_dim)
    with tempfile.TemporaryDirectory() as place:
        began, cpu = time.perf_counter(), time.process_time()
        work = Job(
            sources=find_sources(names, column="image", max_bytes=2**24),
            texts=(),
            pipeline=Pipeline(model, max_batch=_MAX_BATCH, max_bytes=2**24),
            encode_texts=model.encode_texts,
            batch=_MAX_BATCH,
        )
        with (
            open_output(Path(place, "out.parquet"), layout, row_group=10_000) as output,
            Failures(Path(place, "errors.jsonl")) as failures,
        ):
            list(work.run(output, failures, stop=Event()))
            output.finish()
        figures = {
            "rate": output.rows / (time.perf_counter() - began),
            "cpu_ms": 1000 * (time.process_time() - cpu) / output.rows,
            "pictures": float(output.rows),
        }
    return [(Key(configuration.name, what), figures)]


def _inputs(place: Path, pictures: Sequence[bytes], wanted: int) -> dict[str, list[str]]:
    """``wanted`` picture files, many of them the same, in a folder and in tars."""
    folder = place / "photos"
    folder.mkdir(parents=True)
    for number, data in enumerate(pictures):
        (folder / f"{number:06}.jpg").write_bytes(data)
    for number in range(len(pictures), wanted):
        os.link(folder / f"{number % len(pictures):06}.jpg", folder / f"{number:06}.jpg")
    return {FOLDER: [str(folder)], TARS: list(_write_tars(place, sorted(folder.iterdir())))}


def _write_tars(place: Path, files: Sequence[Path]) -> Iterator[str]:
    for shard in range(_SHARDS):
        path = place / f"{shard:03}.tar"
        with tarfile.open(path, "w") as archive:
            for file in islice(files, shard, None, _SHARDS):
                member = tarfile.TarInfo(file.name)
                member.size = file.stat().st_size
                with file.open("rb") as stream:
                    archive.addfile(member, stream)
        yield str(path)


def _sheet(found: Measurements, subjects: Sequence[Configuration]) -> report.Sheet:
    rows: list[list[str]] = []
    for one in subjects:
        bare = Key(one.name, BOTH, BATCH)
        for key in found.of_subject(one.name):
            cells = [f"{found.spread(key, 'rate'):.1f}", f"{found.spread(key, 'cpu_ms'):.1f}"]
            shares = (_share(found, key, bare, figure) for figure in ("rate", "cpu_ms"))
            rows.append([one.name, key.measure, *cells, *(("", "") if key == bare else shares)])
    columns = (
        *("configuration", "measure", "pictures/s", "CPU ms a picture"),
        *("pictures/s ÷ bare pipeline, wanted ≥ 0.90", "CPU ÷ bare pipeline"),
    )
    return report.Sheet(title="Bulk", columns=columns, rows=rows)


def _share(found: Measurements, key: Key, bare: Key, figure: str) -> str:
    pairs = zip(found.repeats(key, figure), found.repeats(bare, figure), strict=True)
    return f"{Spread.of(one / other for one, other in pairs):.2f}"


if __name__ == "__main__":
    main()

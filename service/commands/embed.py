"""``clipserve embed``: pictures and texts, however many, to a file of embeddings; no server needed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from service.bulk.errors import BulkError, InputError, require_pyarrow, writing
from service.commands.options import ColumnOption, ModelOption, load_model, pipeline_of, progress_bars
from service.settings import Settings

if TYPE_CHECKING:
    from service.bulk.failures import Failures
    from service.bulk.job import Job, Tally
    from service.bulk.output import Output

_LINE_SECONDS = 15.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)


def embed(  # noqa: PLR0917 (typer reads the options off the signature)
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, picture files, lists (.txt, a path a line; - is standard input), tars, Parquet"
            " files; also as 'shards/{000..012}.tar' or 'shards/*.tar'."
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Text to embed; repeat it.")] = None,
    out: Annotated[Path, typer.Option(help="File to write: .parquet, or .npy (float32, N x D).")] = Path(
        "embeddings.parquet"
    ),
    column: ColumnOption = "image",
    key_column: Annotated[
        str | None, typer.Option(help="Column of Parquet files whose values become keys; default: FILE#ROW.")
    ] = None,
    precision: Annotated[
        Literal["float32", "float16"], typer.Option(help="What the .parquet keeps numbers in.")
    ] = "float32",
    row_group: Annotated[int, typer.Option(min=1, help="Rows in a row group of the .parquet.")] = 10_000,
    errors: Annotated[
        Path | None, typer.Option(help="File of bad pictures, JSON lines; default: OUT.errors.jsonl.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever is in --out already.")
    ] = False,
    model: ModelOption = None,
) -> None:
    """Write L2-normalised embeddings of pictures and texts to a file.

    A .parquet has the columns key, kind and embedding. Stopped or killed, the same command goes on where it
    was; later, it adds what is new. Bad pictures go to a file of their own and are not tried again.

    A .npy has the rows alone, in the order of the inputs, and is written only if every input could be
    embedded.

    Example: [bold]clipserve embed samples --text "a red circle" --out shapes.parquet[/bold]
    """
    from service.bulk.failures import Failures
    from service.bulk.inputs import find_sources
    from service.bulk.job import Job

    if not inputs and not text:
        raise typer.BadParameter("give pictures, or texts with --text")
    if out.suffix not in {".npy", ".parquet"}:
        raise typer.BadParameter("must end in .npy or .parquet", param_hint="--out")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist", param_hint="--out")
    if out.suffix == ".parquet":
        require_pyarrow(out)
    settings = Settings()
    sources = find_sources(
        inputs or (), column=column, key_column=key_column, max_bytes=settings.max_image_bytes
    )
    loaded = load_model(settings, model)
    job = Job(
        sources=sources,
        texts=text or (),
        pipeline=pipeline_of(loaded, settings),
        encode_texts=loaded.encode_texts,
        batch=settings.max_batch,
    )
    if out.suffix == ".npy":
        _write_npy(job, out)
        return
    from service.bulk.output import Layout, open_output

    manifest = loaded.manifest
    layout = Layout(
        model=manifest.name, digest=manifest.digest, dim=manifest.embedding_dim, precision=precision
    )
    with (
        open_output(out, layout, row_group=row_group, overwrite=overwrite) as output,
        Failures(errors or out.with_suffix(".errors.jsonl"), anew=overwrite) as failures,
    ):
        _write_parquet(job, output, failures)


def _write_parquet(job: Job, output: Output, failures: Failures) -> None:
    if output.rows:
        _tell(f"{output.rows} embeddings are there already; going on")
    with _stoppable() as stop, closing(job.run(output, failures, stop=stop.asked)) as steps:
        tally = _Display(job).follow(steps)
    if stop.signal:
        _tell(f"stopped; {output.rows} embeddings are kept. Start the same command again to go on.")
        raise typer.Exit(128 + stop.signal)
    if tally.seen == 0:
        raise InputError("no pictures were found there")
    output.finish()
    new = "" if tally.embedded == output.rows else f", {tally.embedded} of them new"
    _tell(f"{output.rows} embeddings of {output.dim} numbers in {output.path}{new}")
    if failures.count:
        _tell(f"{failures.count} bad pictures in {failures.path}; delete it to have them tried again")
    if output.rows == 0:
        raise typer.Exit(1)


def _write_npy(job: Job, out: Path) -> None:
    from service.bulk.inputs import total_of

    rows: list[NDArray[np.float32]] = []
    bad = 0
    encoded = job.pipeline.encode(chain.from_iterable(source.pictures() for source in job.sources))
    with progress_bars() as progress:
        for one in progress.track(encoded, total=total_of(job.sources), description="pictures"):
            if one.features is None:
                _tell(f"{one.key}: {one.error}")
                bad += 1
            else:
                rows.append(one.features)
    rows += [features for _, features in job.encode_in_batches(job.texts)]
    if bad:
        raise BulkError(f"{out} was not written: {bad} pictures could not be embedded")
    if not rows:
        raise InputError("no pictures were found there")
    with writing(out):
        np.save(out, np.stack(rows))
    _tell(f"{len(rows)} embeddings of {rows[0].size} numbers in {out}")


@dataclass
class _Stop:
    """Whether the user, or whoever runs the machine, asked for an end, and by which signal."""

    asked: Event = field(default_factory=Event)
    signal: int = 0


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask; the second one ends the process as it always does."""
    stop, before = _Stop(), {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: FrameType | None) -> None:
        stop.signal = number
        stop.asked.set()
        for one, handler in before.items():
            signal.signal(one, handler)
        _tell("stopping once what is under way is written …")

    for one in before:
        signal.signal(one, ask)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Display:
    """How far a job is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, job: Job) -> None:
        self._console = Console(stderr=True)
        self._total: int | None = None
        self._texts = len(job.texts)
        self._sources = job.sources

    def follow(self, steps: Iterator[Tally]) -> Tally:
        """Show each step; the last one."""
        threading.Thread(target=self._count, daemon=True).start()
        is_terminal = self._console.is_terminal
        pause = 0.1 if is_terminal else _LINE_SECONDS
        bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self._console, transient=True)
        with bar if is_terminal else nullcontext():
            task = bar.add_task("", total=None)
            shown = time.monotonic()
            tally = next(steps)
            for tally in steps:
                if time.monotonic() - shown < pause:
                    continue
                shown = time.monotonic()
                if is_terminal:
                    bar.update(task, total=self._total, completed=tally.seen, description=self._line(tally))
                else:
                    _tell(self._line(tally))
        return tally

    def _line(self, tally: Tally) -> str:
        of = "" if self._total is None else f" of {self._total}"
        parts = [f"{tally.seen}{of}", f"{tally.rate:.1f} a second"]
        if self._total is not None and tally.rate:
            parts.append(f"{_duration((self._total - tally.seen) / tally.rate)} left")
        if tally.bad:
            parts.append(f"{tally.bad} bad")
        return ", ".join(parts)

    def _count(self) -> None:
        """Beside the work, which need not wait for it."""
        from service.bulk.inputs import total_of

        with suppress(OSError):  # a folder that vanished meanwhile; the work itself will tell
            pictures = total_of(self._sources)
            self._total = None if pictures is None else pictures + self._texts


def _duration(seconds: float) -> str:
    """Rounded as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _tell(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)

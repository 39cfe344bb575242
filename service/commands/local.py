"""``clipserve classify`` and ``clipserve embed``: on files, in this process, no server needed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.cores import available_cores
from models.errors import ImageError
from models.registry import LoadedModel
from prompts.ensemble import build_class_embeddings
from prompts.labels import Label, check_labels
from prompts.templates import TemplateSet, TemplateSets, custom_template_set
from service.class_builder import make_classifier, split
from service.commands.options import load_model
from service.settings import Settings

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo", ".avif"}


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Model; default: CLIPSERVE_MODELS.")]
Pictures = Annotated[
    list[Path], typer.Argument(help="Picture files, and folders that are searched for them.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(classify)
    app.command()(embed)


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """One picture: its features (D,), or why it has none."""

    path: Path
    features: NDArray[np.float32] | None
    error: str = ""


def classify(  # noqa: PLR0917 (typer reads the options off the signature)
    pictures: Pictures,
    label: Annotated[list[str], typer.Option("--label", "-l", help="What a picture may show; repeat it.")],
    template_set: Annotated[
        str | None, typer.Option(help="Template set; default: CLIPSERVE_DEFAULT_TEMPLATE_SET.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Template of your own with {label}, instead of a set; repeat it.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Best predictions to show.")] = 3,
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or csv.")] = Output.TABLE,
    model: ModelOption = None,
) -> None:
    """Say which labels fit which pictures.

    Example: [bold]clipserve classify samples -l "red circle" -l "blue star"[/bold]
    """
    settings = Settings()
    labels = [Label(name) for name in label]
    check_labels(labels, max_labels=settings.max_classifier_labels, max_length=settings.max_text_length)
    templates = _templates(settings, template_set, template)
    loaded = load_model(settings, model)
    with _progress() as progress:
        task = progress.add_task("prompts", total=None)
        matrix = build_class_embeddings(
            labels,
            templates,
            loaded.encode_texts,
            batch=settings.max_batch,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        classifier = make_classifier(loaded, label, matrix)
        rows: list[dict[str, object]] = []
        for one in _encode(loaded, pictures, settings, progress):
            if one.features is None:
                rows.append({"picture": str(one.path), "error": one.error})
                continue
            best = classifier.top(one.features[np.newaxis], top_k)
            rows += [
                {
                    "picture": str(one.path),
                    "rank": rank,
                    "label": label[index],
                    "score": float(best.scores[0, rank - 1]),
                    "similarity": float(best.similarity[0, rank - 1]),
                }
                for rank, index in enumerate(best.indices[0].tolist(), 1)
            ]
    _print(rows, output)
    _exit_on_errors(sum("error" in row for row in rows))


def embed(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Picture files, and folders of them.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Text to embed; repeat it.")] = None,
    out: Annotated[Path, typer.Option(help="File to write: .npy (float32, N x D) or .parquet.")] = Path(
        "embeddings.parquet"
    ),
    model: ModelOption = None,
) -> None:
    """Write L2-normalised embeddings of pictures and texts to a file.

    A .parquet has the columns input, kind and embedding; a .npy has the rows alone, in the order of the
    inputs, and is written only if every input could be embedded.

    Example: [bold]clipserve embed samples --text "a red circle" --out shapes.parquet[/bold]
    """
    if not pictures and not text:
        raise typer.BadParameter("give pictures, or texts with --text")
    if out.suffix not in {".npy", ".parquet"}:
        raise typer.BadParameter("must end in .npy or .parquet", param_hint="--out")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise typer.BadParameter(
            "a .parquet needs the extra clipserve[bulk]; .npy does not", param_hint="--out"
        )
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist", param_hint="--out")
    settings = Settings()
    loaded = load_model(settings, model)
    with _progress() as progress:
        encoded = list(_encode(loaded, pictures or [], settings, progress))
        texts = [loaded.encode_texts(some) for some in split(text or [], settings.max_batch)]
    failed = [one for one in encoded if one.features is None]
    for one in failed:
        Console(stderr=True).print(f"{one.path}: {one.error}", highlight=False, soft_wrap=True)
    if failed and out.suffix == ".npy":
        _exit_on_errors(len(failed))
    names = [str(one.path) for one in encoded if one.features is not None] + list(text or [])
    kinds = ["image"] * (len(encoded) - len(failed)) + ["text"] * len(text or [])
    rows = [one.features for one in encoded if one.features is not None] + [
        row for part in texts for row in part
    ]
    if not rows:
        _exit_on_errors(len(failed) or 1)
    _write(out, names, kinds, np.stack(rows))
    Console(stderr=True).print(f"{len(rows)} embeddings of {rows[0].size} numbers in {out}", highlight=False)
    _exit_on_errors(len(failed))


def _templates(settings: Settings, name: str | None, own: Sequence[str] | None) -> TemplateSet:
    if own:
        if name:
            raise typer.BadParameter("give --template or --template-set, not both")
        return custom_template_set(own, max_length=settings.max_text_length)
    folders = [folder for folder in (settings.template_sets_dir,) if folder]
    return TemplateSets(*folders).get(name or settings.default_template_set)


def _find(paths: Iterable[Path]) -> list[Path]:
    """Files as given; folders searched through and sorted."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise typer.BadParameter(f"{path}: no such file or folder")
    if paths and not found:
        raise typer.BadParameter("no pictures were found there")
    return found


def _encode(
    model: LoadedModel, paths: Sequence[Path], settings: Settings, progress: Progress
) -> Iterator[_Encoded]:
    """Decode in threads, encode in batches, in the order of the paths; only one batch is in memory."""
    files = _find(paths)
    task = progress.add_task("pictures", total=len(files)) if files else None

    def decode(path: Path) -> NDArray[np.uint8] | str:
        try:
            return model.preprocess(path.read_bytes())
        except (ImageError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(settings.decode_threads or available_cores()) as threads:
        for some in split(files, settings.max_batch):
            decoded = list(threads.map(decode, some))
            good = [pixels for pixels in decoded if not isinstance(pixels, str)]
            features = iter(model.encode_pixels(good) if good else ())
            for path, pixels in zip(some, decoded, strict=True):
                if isinstance(pixels, str):
                    yield _Encoded(path=path, features=None, error=pixels)
                else:
                    yield _Encoded(path=path, features=next(features))
            if task is not None:
                progress.advance(task, len(some))


def _write(out: Path, names: list[str], kinds: list[str], rows: NDArray[np.float32]) -> None:
    if out.suffix == ".npy":
        np.save(out, rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table({"input": names, "kind": kinds, "embedding": vectors}), out)


def _print(rows: list[dict[str, object]], output: Output) -> None:
    if output is Output.JSON:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif output is Output.CSV:
        writer = csv.DictWriter(sys.stdout, ["picture", "rank", "label", "score", "similarity", "error"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        table = Table(
            "picture", "label", "score", "similarity", box=None, pad_edge=False, header_style="bold"
        )
        for row in rows:
            if "error" in row:
                table.add_row(str(row["picture"]), f"[red]{row['error']}[/red]", "", "")
            else:
                name = str(row["picture"]) if row["rank"] == 1 else ""
                table.add_row(name, str(row["label"]), f"{row['score']:.4f}", f"{row['similarity']:.4f}")
        Console().print(table)


def _progress() -> Progress:
    """A bar on standard error, gone when done; nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _exit_on_errors(count: int) -> None:
    if count:
        raise typer.Exit(1)

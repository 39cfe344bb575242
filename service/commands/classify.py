"""``clipserve classify``: on files, in this process, no server needed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prompts.labels import Label, check_labels
from prompts.templates import TemplateSet, TemplateSets, custom_template_set
from service.commands.options import (
    ColumnOption,
    ModelOption,
    class_embeddings,
    load_model,
    pipeline_of,
    progress_bars,
)
from service.settings import Settings


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(classify)


def classify(  # noqa: PLR0917 (typer reads the options off the signature)
    pictures: Annotated[
        list[str], typer.Argument(help="Picture files, and all that [bold]clipserve embed[/bold] takes.")
    ],
    label: Annotated[list[str], typer.Option("--label", "-l", help="What a picture may show; repeat it.")],
    template_set: Annotated[
        str | None, typer.Option(help="Template set; default: CLIPSERVE_DEFAULT_TEMPLATE_SET.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Template of your own with {label}, instead of a set; repeat it.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Best predictions to show.")] = 3,
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or csv.")] = Output.TABLE,
    column: ColumnOption = "image",
    model: ModelOption = None,
) -> None:
    """Say which labels fit which pictures.

    Example: [bold]clipserve classify samples -l "red circle" -l "blue star"[/bold]
    """
    from service.bulk.errors import InputError
    from service.bulk.inputs import find_sources, total_of
    from service.class_builder import make_classifier

    settings = Settings()
    labels = [Label(name) for name in label]
    check_labels(labels, max_labels=settings.max_classifier_labels, max_length=settings.max_text_length)
    templates = _templates(settings, template_set, template)
    sources = find_sources(pictures, column=column, max_bytes=settings.max_image_bytes)
    loaded = load_model(settings, model)
    with progress_bars() as progress:
        matrix = class_embeddings(loaded, labels, templates, batch=settings.max_batch, progress=progress)
        classifier = make_classifier(loaded, label, matrix)
        found = chain.from_iterable(source.pictures() for source in sources)
        encoded = pipeline_of(loaded, settings).encode(found)
        rows: list[dict[str, object]] = []
        for one in progress.track(encoded, total=total_of(sources), description="pictures"):
            if one.features is None:
                rows.append({"picture": one.key, "error": one.error})
                continue
            best = classifier.top(one.features[np.newaxis], top_k)
            rows += [
                {
                    "picture": one.key,
                    "rank": rank,
                    "label": label[index],
                    "score": float(best.scores[0, rank - 1]),
                    "similarity": float(best.similarity[0, rank - 1]),
                }
                for rank, index in enumerate(best.indices[0].tolist(), 1)
            ]
    if not rows:
        raise InputError("no pictures were found there")
    _print(rows, output)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _templates(settings: Settings, name: str | None, own: Sequence[str] | None) -> TemplateSet:
    if own:
        if name:
            raise typer.BadParameter("give --template or --template-set, not both")
        return custom_template_set(own, max_length=settings.max_text_length)
    return TemplateSets(*settings.template_set_folders).get(name or settings.default_template_set)


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
                table.add_row(str(row["picture"]), Text(str(row["error"]), style="red"), "", "")
            else:
                name = str(row["picture"]) if row["rank"] == 1 else ""
                table.add_row(name, str(row["label"]), f"{row['score']:.4f}", f"{row['similarity']:.4f}")
        Console(markup=False).print(table)  # names of files and labels may look like markup

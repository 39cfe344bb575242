"""What several commands share: how they find a model and pictures, and show how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.registry import LoadedModel
from prompts.ensemble import build_class_embeddings
from prompts.labels import Label
from prompts.templates import TemplateSet
from service.registry import registry_of
from service.settings import Settings

if TYPE_CHECKING:
    from service.bulk.pipeline import Pipeline

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Model; default: CLIPSERVE_MODELS.")]
ColumnOption = Annotated[
    str, typer.Option(help="Column of Parquet files that holds pictures or their paths.")
]


def load_model(settings: Settings, name: str | None) -> LoadedModel:
    """A model by name, or the server's default one, ready to encode."""
    return registry_of(settings).load(name or settings.models[0])


def pipeline_of(model: LoadedModel, settings: Settings) -> Pipeline:
    """What encodes pictures within the limits that the server would keep."""
    from service.bulk.pipeline import Pipeline

    return Pipeline(
        model,
        max_batch=settings.max_batch,
        max_bytes=settings.max_image_bytes,
        threads=settings.decode_threads,
    )


def class_embeddings(
    model: LoadedModel, labels: Sequence[Label], template_set: TemplateSet, *, batch: int, progress: Progress
) -> NDArray[np.float32]:
    """Class embeddings (C, D), with a bar that counts prompts."""
    task = progress.add_task("prompts", total=None)
    return build_class_embeddings(
        labels,
        template_set,
        model.encode_texts,
        batch=batch,
        progress=lambda done, total: progress.update(task, completed=done, total=total),
    )


def progress_bars() -> Progress:
    """Bars on standard error, gone when done; nothing where that is no terminal."""
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

"""What several commands share: how they find a model and pictures, and show how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.registry import LoadedModel, ModelRegistry
from service.settings import Settings

if TYPE_CHECKING:
    from service.bulk.pipeline import Pipeline

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Model; default: CLIPSERVE_MODELS.")]
ColumnOption = Annotated[
    str, typer.Option(help="Column of Parquet files that holds pictures or their paths.")
]


def registry_of(settings: Settings) -> ModelRegistry:
    """The registry that the server would have with these settings."""
    return ModelRegistry(
        settings.models_folder,
        options=settings.runtime_options(),
        max_pixels=settings.max_pixels,
        exif=settings.exif_orientation,
        fast_decode=settings.fast_decode,
    )


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

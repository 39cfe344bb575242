"""``clipserve classifiers``: named classifiers built ahead, without a server."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prompts.labels import Label, check_labels
from prompts.store import DirectoryStore, StoredClassifier, check_classifier_name
from prompts.templates import TemplateSets
from service.commands.options import class_embeddings, load_model, progress_bars
from service.settings import Settings

classifiers = typer.Typer(help="Build named classifiers ahead of time.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(classifiers, name="classifiers")


@classifiers.command()
def build(
    name: Annotated[str, typer.Argument(help="Name to ask for it by.")],
    labels: Annotated[
        Path,
        typer.Option(
            help="File with a label a line; - reads standard input.",
            exists=True,
            dir_okay=False,
            allow_dash=True,
        ),
    ],
    template_set: Annotated[str | None, typer.Option(help="Template set.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model.")] = None,
) -> None:
    """Build a classifier into CLIPSERVE_CLASSIFIERS_DIR, where a server finds it when it starts.

    Example: [bold]clipserve classifiers build pets --labels pets.txt --template-set openai-simple[/bold]
    """
    settings = Settings()
    check_classifier_name(name)
    wanted = _read_labels(labels)
    check_labels(wanted, max_labels=settings.max_classifier_labels, max_length=settings.max_text_length)
    templates = TemplateSets(*settings.template_set_folders).get(
        template_set or settings.default_template_set
    )
    loaded = load_model(settings, model)
    with progress_bars() as progress:
        matrix = class_embeddings(loaded, wanted, templates, batch=settings.max_batch, progress=progress)
    store = DirectoryStore(settings.classifiers_folder)
    store.put(
        StoredClassifier(
            name=name,
            labels=wanted,
            template_set=templates,
            model=loaded.name,
            model_digest=loaded.manifest.digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            matrix=matrix,
            ticket=store.ticket(),
        )
    )
    Console(stderr=True).print(
        f"{name}: {len(wanted)} labels, {len(templates.templates)} templates, model {loaded.name}"
    )


def _read_labels(path: Path) -> tuple[Label, ...]:
    try:
        content = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is not UTF-8", param_hint="--labels") from error
    return tuple(Label(line.strip()) for line in content.splitlines() if line.strip())

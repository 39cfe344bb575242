"""``clipserve classifiers``: named classifiers built ahead, without a server."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from prompts.ensemble import build_class_embeddings
from prompts.labels import Label, check_labels
from prompts.store import DirectoryStore, StoredClassifier, check_classifier_name
from prompts.templates import TemplateSets
from service.commands.options import load_model
from service.settings import Settings

classifiers = typer.Typer(help="Build named classifiers ahead of time.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(classifiers, name="classifiers")


@classifiers.command()
def build(
    name: Annotated[str, typer.Argument(help="Name to ask for it by.")],
    labels: Annotated[Path, typer.Option(help="File with a label a line; - reads standard input.")],
    template_set: Annotated[str | None, typer.Option(help="Template set.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model.")] = None,
) -> None:
    """Build a classifier into CLIPSERVE_CLASSIFIERS_DIR, where a server finds it when it starts.

    Example: [bold]clipserve classifiers build pets --labels pets.txt --template-set openai-simple[/bold]
    """
    settings = Settings()
    check_classifier_name(name)
    content = sys.stdin.read() if str(labels) == "-" else labels.read_text()
    wanted = tuple(Label(line.strip()) for line in content.splitlines() if line.strip())
    check_labels(wanted, max_labels=settings.max_classifier_labels, max_length=settings.max_text_length)
    folders = [folder for folder in (settings.template_sets_dir,) if folder]
    templates = TemplateSets(*folders).get(template_set or settings.default_template_set)
    loaded = load_model(settings, model)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("prompts", total=None)
        matrix = build_class_embeddings(
            wanted,
            templates,
            loaded.encode_texts,
            batch=settings.max_batch,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
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
    console.print(f"{name}: {len(wanted)} labels, {len(templates.templates)} templates, model {loaded.name}")

"""``clipserve models``: what is in the registry."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.catalogue import available
from models.errors import ManifestError
from models.registry import describe
from service.registry import registry_of
from service.settings import Settings

models = typer.Typer(help="Look at the models in the registry.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(models, name="models")


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON array.")] = False,
) -> None:
    """List every model in CLIPSERVE_MODELS_DIR and the embedded one."""
    registry = registry_of(Settings())
    manifests = []
    for name in registry.names():
        try:
            manifests.append(registry.manifest(name))
        except ManifestError as error:
            Console(stderr=True).print(str(error), style="red", markup=False)
    if as_json:
        typer.echo(json.dumps([describe(one) for one in manifests], indent=2))
        return
    table = Table("name", "architecture", "pretrained", "dim", "picture", "precision", "MB", box=None)
    for one in manifests:
        size = sum(entry.size for entry in one.files.values()) / 1e6
        table.add_row(
            one.name,
            one.architecture,
            one.pretrained or "-",
            str(one.embedding_dim),
            f"{one.image.size} px",
            one.precision,
            f"{size:.1f}",
        )
    Console(markup=False).print(table)


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Name, as models list has it.")]) -> None:
    """Print what a model's manifest says, its parity report included."""
    typer.echo(json.dumps(describe(registry_of(Settings()).manifest(name)), indent=2, ensure_ascii=False))


@models.command("available")
def list_available(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON array.")] = False,
) -> None:
    """List models people use, and the command that brings each into the registry.

    The accuracy (zero-shot ImageNet top-1) is the one its authors publish; it was not measured here.
    """
    entries = available()
    if as_json:
        rows = [asdict(entry) | {"command": entry.command} for entry in entries]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "parameters", "dim", "picture", "licence", "published", "command", box=None)
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.parameters / 1e6:.0f} M",
            str(entry.embedding_dim),
            f"{entry.image_size} px",
            entry.licence or "?",
            "-" if entry.imagenet_top1 is None else f"{entry.imagenet_top1:.1f} %",
            entry.command,
        )
    Console(soft_wrap=True).print(table)

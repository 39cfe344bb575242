"""``clipserve warm``."""

from __future__ import annotations

from typing import Annotated

import typer

from service.registry import registry_of
from service.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(warm)


def warm(names: Annotated[list[str], typer.Argument(help="Models, as models list has them.")]) -> None:
    """Build ahead what the first start with a model would build, into CLIPSERVE_CACHE_DIR.

    On CPUs that is the comparison of runtimes and OpenVINO's compiled graphs, with TensorRT its engines,
    which take minutes. It holds for this kind of machine and these versions.

    Example: [bold]CLIPSERVE_PROVIDER=tensorrt clipserve warm vit-b-32[/bold]
    """
    registry = registry_of(Settings())
    for name in names:
        running = registry.load(name).running()
        registry.unload(name).close()
        typer.echo(
            f"{name}: {running['runtime']} on {running['provider']} in {running['runtime_precision']},"
            f" {running['load_seconds']:.1f} s"
        )

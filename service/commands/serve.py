"""``clipserve serve`` and ``clipserve config``."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.settings import Settings, unknown_variables


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(config)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the port.")] = None,
    shared_engine: Annotated[
        bool | None,
        typer.Option("--shared-engine", help="One more process runs the models for all of them."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model to load before readiness; repeat for several, the first is the default."),
    ] = None,
) -> None:
    """Start the server.

    Every setting is a CLIPSERVE_ variable ([bold]clipserve config[/bold] lists them); the options here win.

    Example: [bold]clipserve serve --port 8000 --model shapes[/bold]
    """
    from service.logs import configure_logging

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "shared_engine": shared_engine,
        "models": tuple(model) if model else None,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(level=settings.log_level, style=settings.log_format)
    for name, meant in unknown_variables().items():
        hint = f"; did you mean {meant}?" if meant else ""
        logging.getLogger("clipserve").warning("%s is no setting and is ignored%s", name, hint)
    raise typer.Exit(_run(settings))


def _run(settings: Settings) -> int:
    if settings.workers > 1 or settings.shared_engine:
        from service.workers import run_workers

        return run_workers(settings)
    from service.app import create_app
    from service.server import run

    return run(create_app(settings), settings)


def config(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show every setting, its value here, and what it means."""
    settings = Settings()
    if as_json:
        typer.echo(json.dumps(settings.model_dump(mode="json"), indent=2))
        return
    table = Table("variable", "value", "meaning", box=None, pad_edge=False, header_style="bold")
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
        table.add_row(f"CLIPSERVE_{name.upper()}", shown, field.description or "")
    Console(markup=False).print(table)

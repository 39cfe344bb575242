"""``clipserve keys``: keys for those who may ask the server."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from service.keys import new_key

keys = typer.Typer(help="Make API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(keys, name="keys")


@keys.callback()
def _keys() -> None:
    """Keep ``new`` a command of its own though it is the only one."""


@keys.command()
def new(name: Annotated[str, typer.Argument(help="Whom the key is for; it shows up in the log.")]) -> None:
    """Print a fresh key, to be handed over, and its hash, to be put into CLIPSERVE_API_KEYS.

    The key is kept nowhere. For an admin key, set CLIPSERVE_ADMIN_KEY to sha256: and the hash.

    Example: [bold]clipserve keys new web-shop[/bold]
    """
    try:
        secret, entry = new_key(name)
    except ValueError as error:
        raise typer.BadParameter("must be 1 to 64 A-Z a-z 0-9 . _ -", param_hint="NAME") from error
    console = Console(stderr=True, highlight=False)
    console.print("The key, for its holder:")
    typer.echo(secret)
    console.print("Its entry, for CLIPSERVE_API_KEYS or a line of CLIPSERVE_API_KEYS_FILE:")
    typer.echo(entry)

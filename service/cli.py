"""The command ``clipserve``: one sub-command a task; what each does lies in ``service.commands``."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from models.errors import ModelError
from prompts.errors import PromptError
from service.bulk.errors import BulkError
from service.commands import acquire, classifiers, classify, embed, evaluate, keys, models, serve, warm
from service.evaluation.errors import EvaluationError

app = typer.Typer(
    name="clipserve",
    help=(
        "Zero-shot image classification: pictures and words in, probabilities and embeddings out.\n\n"
        "Start a server with [bold]clipserve serve[/bold], or work on files at once with"
        " [bold]clipserve classify[/bold] and [bold]clipserve embed[/bold]."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
)
serve.register(app)
classify.register(app)
embed.register(app)
evaluate.register(app)
acquire.register(app)
models.register(app)
warm.register(app)
classifiers.register(app)
keys.register(app)


def main() -> NoReturn:
    """Run the command; an error made by the user is one sentence, not a stack trace."""
    try:
        app(standalone_mode=True)
    except (ModelError, PromptError, EvaluationError, BulkError) as error:
        _fail(str(error))
    except OSError as error:  # a file that cannot be read or written, in most cases
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        _fail(f"CLIPSERVE_{name}: {first['msg'].removeprefix('Value error, ')}")
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    text = escape(message)  # a hint such as clipserve[gpu] is no markup
    Console(stderr=True).print(f"[bold red]clipserve:[/bold red] {text}", highlight=False, soft_wrap=True)
    sys.exit(1)

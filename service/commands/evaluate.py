"""``clipserve eval``: how good a model and its prompts are on your own pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from prompts.errors import TemplateError, UnknownTemplateSetError
from prompts.templates import TemplateSet, TemplateSets, read_template_set
from service.commands.options import load_model, pipeline_of, progress_bars
from service.settings import Settings

if TYPE_CHECKING:
    from service.evaluation.encoder import Encoder
    from service.evaluation.results import Evaluation
    from service.evaluation.statistics import Estimate

_COMPARED = ("photo", "openai-simple", "openai-imagenet")
_BAD_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(  # noqa: PLR0917 (typer reads the options off the signature)
    folder: Annotated[Path, typer.Argument(help="Folder of pictures with one sub-folder a class.")],
    labels: Annotated[
        Path | None, typer.Option(help='JSON, {"folder": "label"}; default: the folders\' names.')
    ] = None,
    template_set: Annotated[
        list[str] | None,
        typer.Option(help=f"Template set to compare; repeat it. Default: {', '.join(_COMPARED)}."),
    ] = None,
    templates: Annotated[
        list[Path] | None, typer.Option(help="Template set of your own, a JSON file; repeat it.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="HTML file to write: one page, plots inside.", dir_okay=False, writable=True),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="JSON file to write, with every figure.", dir_okay=False, writable=True),
    ] = None,
    most_confused: Annotated[
        int, typer.Option(min=0, max=500, help="Most confused pictures to show in the report.")
    ] = 24,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model; default: the server's, or CLIPSERVE_MODELS.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Server to ask, instead of working in this process.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key for the server; @FILE reads it from a file.")
    ] = None,
) -> None:
    """Measure a model on pictures of which you know what they show, and compare template sets.

    Pictures are encoded once, however many template sets are compared. Those that cannot be are listed.

    Example: [bold]clipserve eval pets --report pets.html --json pets.json[/bold]
    """
    from service.evaluation.evaluate import evaluate as run
    from service.evaluation.folder import read_folder

    settings = Settings()
    for file, option in ((report, "--report"), (json, "--json")):
        if file is not None and not file.parent.is_dir():
            raise typer.BadParameter(f"the folder {file.parent} does not exist", param_hint=option)
    if api_key is not None and server is None:
        raise typer.BadParameter("is for a server; give --server too", param_hint="--api-key")
    pictures = read_folder(folder, labels, max_length=settings.max_text_length)
    own = [read_template_set(path) for path in templates or ()]
    with _encoder(settings, model, server, api_key) as encoder, progress_bars() as progress:
        found = run(
            pictures,
            _choose(encoder, template_set, own),
            encoder,
            track=lambda items, what, total: progress.track(items, total=total, description=what),
            most_confused=most_confused,
        )
    _show(found)
    if json is not None:
        json.write_bytes(_as_json(found))
    if report is not None:
        report.write_text(_as_page(found, folder, settings.max_pixels), encoding="utf-8")


@contextmanager
def _encoder(
    settings: Settings, model: str | None, server: str | None, api_key: str | None
) -> Iterator[Encoder]:
    if server is not None:
        from service.evaluation.server import connected

        if not server.startswith(("http://", "https://")):
            raise typer.BadParameter("must begin with http:// or https://", param_hint="--server")
        with connected(server, model=model, api_key=_secret(api_key)) as remote:
            yield remote
        return
    from service.evaluation.encoder import LocalEncoder

    loaded = load_model(settings, model)
    yield LocalEncoder(
        loaded,
        pipeline_of(loaded, settings),
        template_sets=list(TemplateSets(*settings.template_set_folders)),
        default_template_set=settings.default_template_set,
        batch=settings.max_batch,
    )


def _secret(given: str | None) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given[1:]} cannot be read", param_hint="--api-key") from error


def _choose(encoder: Encoder, names: Sequence[str] | None, own: Sequence[TemplateSet]) -> list[TemplateSet]:
    """The sets to compare: those named, else the usual ones and the default; then the user's own."""
    known = {one.name: one for one in encoder.template_sets}
    wanted = names or [name for name in (*_COMPARED, encoder.default_template_set) if name in known]
    for name in wanted:
        if name not in known:
            raise UnknownTemplateSetError(
                f"--template-set: none is named {name!r}; known: {', '.join(sorted(known))}"
            )
    chosen = [known[name] for name in dict.fromkeys(wanted)]
    for one in own:
        if one.name in {other.name for other in chosen}:
            raise TemplateError(f"--templates: another set is named {one.name!r} too; rename the file")
        chosen.append(one)
    return chosen


def _show(found: Evaluation) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("template set", "templates", "top-1 %", "top-5 %", "difference"):
        table.add_column(name, no_wrap=True)
    for one in found.template_sets:
        is_first = one is found.template_sets[0]
        table.add_row(
            one.name,
            str(len(one.templates)),
            _share(one.top1),
            _percent(one.top5.value),
            "" if is_first else _share(one.gain, "+"),
        )
    Console(markup=False).print(table)  # a file of templates may have any name
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for bad in found.bad_pictures[:_BAD_SHOWN]:
        console.print(f"left out: {bad.path}: {bad.reason}", markup=False)
    if len(found.bad_pictures) > _BAD_SHOWN:
        console.print(f"and {len(found.bad_pictures) - _BAD_SHOWN} more pictures")


def _share(share: Estimate, sign: str = "") -> str:
    value, low, high = (_percent(one, sign) for one in (share.value, share.low, share.high))
    return f"{value} ({low} to {high})"


def _percent(share: float, sign: str = "") -> str:
    return format(round(100 * share, 1) + 0.0, f"{sign}.1f")  # never -0.0


def _as_json(found: Evaluation) -> bytes:
    import orjson

    return orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)


def _as_page(found: Evaluation, folder: Path, max_pixels: int) -> str:
    from service.evaluation.report import render
    from service.evaluation.thumbnails import thumbnails

    paths = [one.path for one in found.best_set.most_confused]
    return render(found, thumbnails(folder, paths, max_pixels=max_pixels))

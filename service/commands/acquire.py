"""``clipserve export``, ``pull`` and ``verify``: how a model gets into the registry, proven right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.errors import ExportError
from models.manifest import ModelManifest, Precision
from service.registry import registry_of
from service.settings import Settings

_PRECISIONS = ("fp32", "fp16", "int8")
_CONSOLE = Console(stderr=True, highlight=False)

PrecisionOption = Annotated[str, typer.Option(help="fp32, fp16 or int8; each has a parity gate of its own.")]
NameOption = Annotated[str | None, typer.Option(help="Name in the registry.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a model of the same name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command()(pull)
    app.command()(verify)


def export(  # noqa: PLR0917 (typer reads the options off the signature)
    architecture: Annotated[str, typer.Argument(help="As open_clip has it: ViT-B-32, hf-hub:…, local-dir:…")],
    pretrained: Annotated[str | None, typer.Option(help="Tag of pretrained weights, such as openai.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File of weights instead of a tag, such as a fine-tuned model's.")
    ] = None,
    precision: PrecisionOption = "fp32",
    name: NameOption = None,
    check_images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to check with, besides the generated ones.")
    ] = None,
    calibration_images: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures like those to come: with it int8 rounds activations too."),
    ] = None,
    calibration_texts: Annotated[
        Path | None, typer.Option(help="File of texts like those to come, one a line, besides general ones.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Export an open_clip model and prove that the export gives what the original gives.

    Nothing reaches the registry before pictures and texts have gone through both and agree. Without
    --pretrained and --checkpoint the weights are random: good for load tests, of no other use.

    Example: [bold]clipserve export ViT-B-32 --pretrained laion2b_s34b_b79k --name vit-b-32[/bold]
    """
    if calibration_texts is not None and calibration_images is None:
        raise typer.BadParameter("needs --calibration-images", param_hint="--calibration-texts")
    with _extra("export"):
        from models.calibration import Calibration
        from models.export import export_open_clip

    calibration = None
    if calibration_images is not None:
        calibration = Calibration.read(calibration_images, calibration_texts)
    brings_weights = architecture.startswith(("hf-hub:", "local-dir:"))
    if pretrained is None and checkpoint is None and not brings_weights:
        _CONSOLE.print(
            "[bold yellow]Neither --pretrained nor --checkpoint: the weights are RANDOM.[/bold yellow]"
        )
    target = Settings().models_folder / (name or default_name(architecture, pretrained))
    with _progress() as tell:
        export_open_clip(
            architecture,
            destination=target,
            pretrained=pretrained,
            checkpoint=checkpoint,
            precision=_precision(precision),
            check_images=check_images,
            calibration=calibration,
            licence=licence,
            overwrite=overwrite,
            progress=tell,
        )
    _report(target)


def pull(  # noqa: PLR0917
    repo: Annotated[str, typer.Argument(help="OWNER/NAME[@REVISION] on the hub; HF_ENDPOINT sets which.")],
    precision: PrecisionOption = "fp32",
    name: NameOption = None,
    sha256: Annotated[
        list[str] | None,
        typer.Option(help="FILE=HEX: refuse the file of the repository if its SHA-256 differs; repeat it."),
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="Trained factor, where the repository does not tell.")
    ] = None,
    logit_bias: Annotated[float | None, typer.Option(help="Trained bias of a SigLIP model.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Take a ready-made ONNX export from a hub, rewrap it and check it against the original files.

    Understands the layouts of Optimum / transformers.js and of Immich.

    Example: [bold]clipserve pull Xenova/clip-vit-base-patch32 --name vit-b-32[/bold]
    """
    with _extra("export"):
        from models.pull import default_name as name_of
        from models.pull import pull as pull_model

    target = Settings().models_folder / (name or name_of(repo))
    with _progress() as tell:
        pull_model(
            repo,
            destination=target,
            precision=_precision(precision),
            sha256=dict(_pin(pin) for pin in sha256 or ()),
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            overwrite=overwrite,
            progress=tell,
        )
    _report(target)


def verify(name: Annotated[str, typer.Argument(help="Name, as models list has it.")]) -> None:
    """Check a model where it lies: hashes, contract, batch and length invariance, tokenizer.

    Needs no torch. Ends with status 1 if a check fails.
    """
    from models.verify import verify as verify_model

    report = verify_model(registry_of(Settings()).folder(name))
    console = Console(highlight=False, soft_wrap=True)
    for check in report.checks:
        mark = "[green]ok    [/green]" if check.passed else "[bold red]FAILED[/bold red]"
        console.print(f"{mark} {check.name}: ", end="")
        console.print(check.detail, markup=False)
    if not report.passed:
        raise typer.Exit(1)


def default_name(architecture: str, pretrained: str | None) -> str:
    """A registry name made of architecture and tag, such as ``vit-b-32-openai``."""
    base = architecture.rpartition(":")[2].rpartition("/")[2].lower()
    return f"{base}-{pretrained.lower()}" if pretrained else base


def _precision(given: str) -> Precision:
    if given not in _PRECISIONS:
        raise typer.BadParameter(f"must be one of {', '.join(_PRECISIONS)}", param_hint="--precision")
    return cast(Precision, given)


def _pin(given: str) -> tuple[str, str]:
    file, _, digest = given.rpartition("=")
    if not file:
        raise typer.BadParameter("must be FILE=HEX", param_hint="--sha256")
    return file, digest.lower()


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ExportError(f"this needs more packages: pip install 'clipserve[{name}]' ({error})") from error


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar with the present stage on a terminal, a line a stage elsewhere."""
    logging.getLogger().setLevel(logging.ERROR)  # the exporters' own chatter
    if not _CONSOLE.is_terminal:
        stages: set[str] = set()

        def say(stage: str, _: float) -> None:
            if stage not in stages:
                stages.add(stage)
                _CONSOLE.print(stage)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_CONSOLE, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, share: bar.update(task, description=stage, completed=share)


def _report(folder: Path) -> None:
    """What was made, and how close it is to the original."""
    manifest = ModelManifest.read(folder)
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    _CONSOLE.print(f"[bold green]{manifest.name}[/bold green] is in the registry: {folder} ({size:.0f} MB)")
    if manifest.description:
        _CONSOLE.print(manifest.description)
    if (parity := manifest.parity) is not None:
        _CONSOLE.print(
            f"compared with {parity.reference}: smallest cosine {parity.image.min_cosine:.7f} over"
            f" {parity.image.items} pictures, {parity.text.min_cosine:.7f} over {parity.text.items} texts;"
            f" same top-1 on {parity.top1_agreement:.1%} of the pictures"
        )
    _CONSOLE.print(f"serve it with: clipserve serve --model {manifest.name}")

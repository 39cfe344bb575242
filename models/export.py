"""open_clip → a model folder: two ONNX graphs, tokenizer, manifest, and the proof that they give the same.

Nothing reaches the destination before every check has passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from models import towers
from models.architectures import Weights, load
from models.calibration import Calibration
from models.errors import ExportError
from models.export_job import ExportJob, Progress
from models.manifest import (
    ImageSpec,
    ModelManifest,
    ModelName,
    Precision,
    ScoringSpec,
    file_entry,
)
from models.runtimes import RuntimeOptions
from models.staging import refuse_existing, staged


def export_model(
    model: nn.Module,
    tokenizer: Any,
    *,
    name: str,
    architecture: str,
    destination: Path,
    image: ImageSpec,
    pretrained: str | None = None,
    precision: Precision = "fp32",
    check_images: Path | None = None,
    calibration: Calibration | None = None,
    overwrite: bool = False,
    licence: str = "",
    source: str = "",
    description: str = "",
    threads: int = 0,
    external_data_bytes: int = towers.EXTERNAL_DATA_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Export an open_clip model object to the model folder ``destination`` and prove that it is the same.

    ``model`` is a CLIP, CustomTextCLIP or CoCa of open_clip; it is put into eval mode and not changed
    otherwise. ``tokenizer`` is open_clip's, or a ``TokenizerSource``. ``check_images`` names a folder of
    pictures to check besides the generated ones. With a ``calibration`` int8 means activations too, not only
    weights. ``threads`` bounds torch and ONNX Runtime; 0 leaves the choice to them. ``progress``
    is told the stage and the share done, 0..1.
    Returns ``destination``.

    Raises:
        ExportError: the arguments do not fit, a tower cannot be exported, or a parity gate is missed (the
            text has the figures). Nothing is left behind, and what was at ``destination`` is untouched.
    """
    _check_name(name)
    if calibration is not None and precision != "int8":
        raise ExportError(f"calibration_images: they are for the precision int8, not for {precision}")
    model.eval()
    with staged(destination, overwrite=overwrite) as folder, _torch_threads(threads):
        job = ExportJob(
            model=model,
            image=image,
            precision=precision,
            calibration=calibration,
            folder=folder,
            options=RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=threads),
            external_data_bytes=external_data_bytes,
            tell=progress or (lambda _stage, _share: None),
        )
        made = job.run(tokenizer, check_images)
        ModelManifest(
            name=name,
            architecture=architecture,
            pretrained=pretrained,
            network_activation=_network_activation(model),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            source=source,
            licence=licence,
            description=description,
            embedding_dim=made.embedding_dim,
            image=image,
            text=made.text,
            scoring=_scoring(model),
            precision=precision,
            opset=made.opset,
            files={path.name: file_entry(path) for path in sorted(folder.iterdir())},
            parity=made.report,
        ).write(folder)
    return destination


def export_open_clip(
    architecture: str,
    *,
    destination: Path,
    name: str | None = None,
    pretrained: str | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    check_images: Path | None = None,
    calibration: Calibration | None = None,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    licence: str = "",
    description: str = "",
    threads: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Export a model that open_clip knows by name; see ``architectures.load`` and ``export_model``.

    ``architecture`` is one of ``open_clip.list_models()``, ``hf-hub:…`` or ``local-dir:…``. ``pretrained``
    is one of its tags, ``checkpoint`` a file of weights, fine-tuned ones say; with neither, the weights are
    random. ``name`` is that of the folder ``destination`` unless given. Returns ``destination``.

    Raises:
        ExportError: see there. Nothing is left behind.
    """
    name = name or destination.name
    _check_name(name)
    refuse_existing(destination, overwrite=overwrite)
    if progress:
        progress(f"loading {architecture}", 0.0)
    weights = Weights(tag=pretrained, checkpoint=checkpoint, seed=seed)
    loaded = load(architecture, weights, cache_dir=cache_dir)
    return export_model(
        loaded.model,
        loaded.tokenizer,
        name=name,
        architecture=loaded.architecture,
        destination=destination,
        image=loaded.image,
        pretrained=pretrained,
        precision=precision,
        check_images=check_images,
        calibration=calibration,
        overwrite=overwrite,
        licence=licence,
        source=loaded.source,
        description=". ".join(filter(None, (description, *loaded.remarks))),
        threads=threads,
        progress=progress,
    )


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _check_name(name: str) -> None:
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError as error:
        raise ExportError(
            f"name: {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
        ) from error


def _network_activation(model: nn.Module) -> str:
    from open_clip.transformer import QuickGELU

    return "quickgelu" if any(isinstance(module, QuickGELU) for module in model.modules()) else "gelu"


def _scoring(model: Any) -> ScoringSpec:
    """A model with a bias was trained with the sigmoid loss (SigLIP, Zhai et al. 2023, section 3.2)."""
    scale, bias = model.logit_scale.exp().item(), getattr(model, "logit_bias", None)
    if bias is None:
        return ScoringSpec(logit_scale=scale)
    return ScoringSpec(logit_scale=scale, logit_bias=bias.item(), activation="sigmoid")

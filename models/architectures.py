"""From a name of open_clip's to a loaded model, its tokenizer and its preprocessing, or a clear refusal."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.check_set import CheckSet
from models.errors import ExportError
from models.manifest import ImageSpec
from models.random_weights import enliven, settle_batch_norms
from models.reference import Reference
from models.towers import quiet, reason

_LOG = logging.getLogger("clipserve.export")
_QUICK = "-quickgelu"
_SCHEMES = ("hf-hub:", "local-dir:")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where weights come from: a published ``tag``, a ``checkpoint`` file, or the random ``seed``."""

    tag: str | None = None
    checkpoint: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """What open_clip made of a name. ``remarks`` are for the manifest's description."""

    architecture: str
    model: nn.Module
    tokenizer: Any
    image: ImageSpec
    source: str
    remarks: tuple[str, ...] = ()


def load(architecture: str, weights: Weights, *, cache_dir: Path | None = None) -> OpenClipModel:
    """Build ``architecture`` (a name of open_clip's, ``hf-hub:…`` or ``local-dir:…``) with ``weights``.

    With neither tag nor checkpoint, and no scheme in the name, the weights are random and seeded, and the
    model knows nothing: the log, ``source`` and ``remarks`` say so.

    Raises:
        ExportError: the name or the tag is unknown, the tag was trained with another activation function
            than the architecture has, the weights do not load, or the pictures are not square.
    """
    if not architecture.startswith(_SCHEMES):
        architecture = architecture.replace("/", "-")  # ViT-B/32, as the paper writes it
    _check(architecture, weights)
    has_weights = bool(weights.tag or weights.checkpoint or architecture.startswith(_SCHEMES))
    model, tokenizer = _create(architecture, weights, has_weights, cache_dir)
    loaded = OpenClipModel(
        architecture=_shown(architecture),
        model=model.eval(),
        tokenizer=tokenizer,
        image=_image_spec(architecture, model),
        source=_source(architecture, weights, has_weights),
        remarks=_remarks(architecture, weights),
    )
    return loaded if has_weights else _with_random_weights(loaded, weights.seed)


def _check(architecture: str, weights: Weights) -> None:
    import open_clip

    if weights.tag and weights.checkpoint:
        raise ExportError("pretrained and checkpoint exclude each other; name one of them")
    if weights.checkpoint and not weights.checkpoint.is_file():
        raise ExportError(f"checkpoint: {weights.checkpoint} is no file")
    if architecture.startswith(_SCHEMES):
        if weights.tag or weights.checkpoint:
            raise ExportError(
                f"{_shown(architecture)} brings its own weights; leave pretrained and checkpoint out"
            )
        return
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ExportError(f"architecture: open_clip knows no {architecture!r}{hint}")
    if weights.tag:
        _check_tag(architecture, weights.tag)


def _check_tag(architecture: str, tag: str) -> None:
    """The tag decides between GELU and QuickGELU; open_clip itself would load a mismatch with a warning."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    published = get_pretrained_cfg(architecture, tag)
    plain = architecture.removesuffix(_QUICK)
    if not published and architecture != plain and get_pretrained_cfg(plain, tag):
        raise ExportError(
            f"pretrained: {tag!r} was trained with GELU; export {plain} instead of {architecture}"
        )
    if not published:
        tags = ", ".join(list_pretrained_tags_by_model(architecture)) or "none"
        raise ExportError(f"pretrained: {architecture} has no {tag!r}; its tags: {tags}")
    if published.get("quick_gelu") and not _has_quick_gelu(architecture):
        raise ExportError(
            f"pretrained: {tag!r} was trained with QuickGELU, and {architecture} has GELU;"
            f" export {architecture}{_QUICK} instead"
        )


def _has_quick_gelu(architecture: str) -> bool:
    import open_clip

    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))


def _create(
    architecture: str, weights: Weights, has_weights: bool, cache_dir: Path | None
) -> tuple[Any, Any]:
    import open_clip

    folder = str(cache_dir) if cache_dir else None
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed)
            model = open_clip.create_model(
                architecture,
                pretrained=str(weights.checkpoint) if weights.checkpoint else weights.tag,
                force_preprocess_cfg={} if weights.tag else _usual_preprocessing(architecture),
                pretrained_text=False,
                require_pretrained=has_weights,
                cache_dir=folder,
            )
            return model, open_clip.get_tokenizer(architecture, cache_dir=folder)
    except Exception as error:  # whatever open_clip, the hub's client or a checkpoint's reader raises
        raise ExportError(f"open_clip cannot load {_shown(architecture)}: {reason(error)}") from error


def _usual_preprocessing(architecture: str) -> dict[str, Any]:
    """What all of an architecture's published weights agree on; a bare checkpoint says nothing of it.

    open_clip would take CLIP's own values, which are wrong for SigLIP, MobileCLIP and others.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    fields = ("mean", "std", "interpolation", "resize_mode")
    tags = list_pretrained_tags_by_model(architecture)
    published = [get_pretrained_cfg(architecture, tag) for tag in tags]
    choices = [{field: one[field] for field in fields} for one in published]
    agreed = bool(choices) and all(choice == choices[0] for choice in choices)
    return choices[0] if agreed else {}


def _image_spec(architecture: str, model: Any) -> ImageSpec:
    found = model.visual.preprocess_cfg
    size = found["size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise ExportError(
            f"{_shown(architecture)} takes pictures of {width}×{height}; only square ones are served"
        )
    fill = int(found["fill_color"])
    return ImageSpec(
        size=height,
        resize=found["resize_mode"],
        # open_clip's "random" is for training; its own evaluation takes bicubic then.
        interpolation="bilinear" if found["interpolation"] == "bilinear" else "bicubic",
        fill=(fill, fill, fill),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def _with_random_weights(loaded: OpenClipModel, seed: int) -> OpenClipModel:
    remark = f"RANDOM WEIGHTS (seed {seed}): for tests and benchmarks; it knows nothing"
    _LOG.warning("%s: %s", loaded.architecture, remark)
    enliven(loaded.model, seed=seed)
    pictures = CheckSet.build(size=loaded.image.size, context_length=8, seed=seed).pictures[::5]
    images = Reference(loaded.model, loaded.image).preprocess(pictures)
    settle_batch_norms(loaded.model.get_submodule("visual"), images)
    return replace(loaded, remarks=(remark, *loaded.remarks))


def _source(architecture: str, weights: Weights, has_weights: bool) -> str:
    if weights.checkpoint:
        return f"checkpoint {weights.checkpoint.name}"
    if not has_weights:
        return f"random weights, seed {weights.seed}"
    if weights.tag:
        return f"open_clip {architecture}/{weights.tag}"
    return architecture if architecture.startswith("hf-hub:") else f"folder {_shown(architecture)}"


def _remarks(architecture: str, weights: Weights) -> tuple[str, ...]:
    if weights.checkpoint and not _usual_preprocessing(architecture):
        return ("picture preprocessing is open_clip's default, as a checkpoint does not carry its own",)
    return ()


def _shown(architecture: str) -> str:
    """A name without the path of somebody's machine."""
    path = architecture.removeprefix("local-dir:")
    return Path(path).name if path != architecture else architecture

"""The two layouts in which ready-made ONNX exports of CLIP models lie on hubs, and what their files say.

``transformers``: written by Optimum, read by transformers.js; graphs in ``onnx/``, Hugging Face configs.
``immich``: written by Immich's exporter from open_clip; one folder a tower, open_clip's configs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import PullError
from models.manifest import Activation, ImageSpec, Precision

Cleaning = Literal["none", "whitespace", "lower", "canonicalize"]
MaskRule = Literal["to_end", "not_pad", "ones"]
Config = Mapping[str, Any]
Reader = Callable[[str], Path]

SUFFIXES: dict[Precision, tuple[str, ...]] = {
    "fp32": ("",),
    "fp16": ("_fp16",),
    "int8": ("_quantized", "_int8", "_uint8"),
}
# transformers writes this where nothing was set; it is where training starts, never what it arrives at.
LIBRARY_LOGIT_SCALE = 2.6592
_FILTERS: dict[object, Literal["bilinear", "bicubic"]] = {
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which files of a repository make a model; ``image`` and ``text`` are one file when it is combined."""

    name: Literal["transformers", "immich"]
    image: str
    text: str
    preprocessing: str
    tokenizer: str
    tokenizer_config: str
    config: str

    @property
    def combined(self) -> bool:
        """Both towers, and the scores, come from one graph."""
        return self.image == self.text

    @property
    def graphs(self) -> tuple[str, ...]:
        """The ONNX files, each once."""
        return tuple(dict.fromkeys((self.image, self.text)))

    @property
    def files(self) -> tuple[str, ...]:
        """Every file the repository must have."""
        return (*self.graphs, self.preprocessing, self.tokenizer, self.tokenizer_config, self.config)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the configs say about a model. ``log_scale`` is None where they do not say it."""

    architecture: str
    network_activation: str
    activation: Activation
    log_scale: float | None
    image: ImageSpec
    context_length: int
    cleaning: Cleaning
    pad_token_name: str | None
    mask: MaskRule
    image_outputs: tuple[str, ...]
    text_outputs: tuple[str, ...]


def find_layout(repo: str, files: Collection[str], precision: Precision) -> Layout:
    """Recognise the layout and choose the graphs of that precision.

    A combined graph is preferred to two of the same weights: only it tells the trained logit scale.

    Raises:
        PullError: neither layout is complete; the text lists what was looked for.
    """
    candidates = [*_transformers_layouts(precision), *([_IMMICH] if precision == "fp32" else [])]
    for layout in candidates:
        if all(
            path in files for path in (*layout.graphs, layout.preprocessing, layout.tokenizer, layout.config)
        ):
            return layout
    wanted = "; or ".join(
        ", ".join((*layout.graphs, layout.preprocessing, layout.tokenizer, layout.config))
        for layout in candidates
    )
    raise PullError(f"{repo} has no ready-made {precision} export in a known layout; looked for {wanted}")


def read_facts(layout: Layout, read: Reader) -> Facts:
    """Read the configs; ``read`` gives the local copy of a path of the repository.

    Raises:
        PullError: a config is malformed, or asks for something serving does not do; the text names the field.
    """
    config, preprocessing = (_read_json(read(path), path) for path in (layout.config, layout.preprocessing))
    pad = _read_json(read(layout.tokenizer_config), layout.tokenizer_config).get("pad_token")
    pad_name = pad.get("content") if isinstance(pad, dict) else pad
    describe = _transformers_facts if layout.name == "transformers" else _immich_facts
    try:
        return describe(config, preprocessing, pad_name)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PullError(
            f"{layout.config} or {layout.preprocessing} lacks or garbles a field ({error!r})"
        ) from error


# --- Optimum and transformers.js -----------------------------------------------------------------------


def _transformers_layouts(precision: Precision) -> list[Layout]:
    pairs = [
        pair
        for suffix in SUFFIXES[precision]
        for pair in (
            (f"onnx/model{suffix}.onnx",) * 2,
            (f"onnx/vision_model{suffix}.onnx", f"onnx/text_model{suffix}.onnx"),
        )
    ]
    return [
        Layout(
            name="transformers",
            image=image,
            text=text,
            preprocessing="preprocessor_config.json",
            tokenizer="tokenizer.json",
            tokenizer_config="tokenizer_config.json",
            config="config.json",
        )
        for image, text in pairs
    ]


def _transformers_facts(config: Config, preprocessing: Config, pad: str | None) -> Facts:
    kind = str(config.get("model_type", ""))
    siglip = kind.startswith("siglip")
    text: Config = config.get("text_config") or {}
    scale = config.get("logit_scale_init_value")
    pooled = ("pooler_output",) if siglip else ()  # CLIP's pooler comes before its projection
    return Facts(
        architecture=str(config.get("_name_or_path") or (config.get("architectures") or [kind])[0]),
        network_activation=_network_activation(text.get("hidden_act"), siglip),
        activation="sigmoid" if siglip else "softmax",
        log_scale=None if scale is None or abs(scale - LIBRARY_LOGIT_SCALE) < 1e-3 else float(scale),
        image=_transformers_image(preprocessing),
        context_length=int(text.get("max_position_embeddings") or (64 if siglip else 77)),
        cleaning="canonicalize" if siglip else "lower" if kind == "clip" else "whitespace",
        pad_token_name=pad,
        mask="ones" if siglip else "to_end" if kind == "clip" else "not_pad",
        image_outputs=("image_embeds", *pooled),
        text_outputs=("text_embeds", *pooled),
    )


def _network_activation(name: str | None, siglip: bool) -> str:
    """The manifest's name for ``hidden_act``; configs leave out what is the library's default."""
    chosen = name or ("gelu_pytorch_tanh" if siglip else "quick_gelu")
    return chosen.replace("quick_gelu", "quickgelu")


def _transformers_image(config: Config) -> ImageSpec:
    size = config["size"]
    crop = (
        _side("crop_size", config["crop_size"])
        if config.get("do_center_crop", "crop_size" in config)
        else None
    )
    shortest = (
        size
        if isinstance(size, int) and crop
        else size.get("shortest_edge")
        if isinstance(size, dict)
        else None
    )
    side = shortest or _side("size", size)
    if crop is not None and crop != side:
        raise PullError(f"preprocessor_config.json: size {side} and crop_size {crop} must be equal")
    if config.get("do_rescale", True) and abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise PullError(
            f"preprocessor_config.json: rescale_factor must be 1/255, not {config['rescale_factor']}"
        )
    normalise = config.get("do_normalize", True)
    return ImageSpec(
        size=side,
        resize="shortest" if shortest else "squash",
        interpolation=_filter("preprocessor_config.json: resample", config.get("resample", 3)),
        mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
    )


def _side(field: str, size: int | Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise PullError(f"preprocessor_config.json: {field} must be square, not {dict(size)}")
    return int(size["height"])


# --- Immich --------------------------------------------------------------------------------------------

_IMMICH = Layout(
    name="immich",
    image="visual/model.onnx",
    text="textual/model.onnx",
    preprocessing="visual/preprocess_cfg.json",
    tokenizer="textual/tokenizer.json",
    tokenizer_config="textual/tokenizer_config.json",
    config="config.json",
)


def _immich_facts(config: Config, preprocessing: Config, pad: str | None) -> Facts:
    text: Config = config["text_cfg"]
    sigmoid = config.get("init_logit_bias") is not None
    default: Cleaning = "whitespace" if "hf_tokenizer_name" in text else "lower"
    return Facts(
        architecture=str(config.get("model_name") or text.get("hf_model_name") or "open_clip"),
        network_activation="quickgelu" if config.get("quick_gelu") else "gelu",
        activation="sigmoid" if sigmoid else "softmax",
        log_scale=None,
        image=_immich_image(preprocessing),
        context_length=int(text.get("context_length", 77)),
        cleaning=(text.get("tokenizer_kwargs") or {}).get("clean", default),
        pad_token_name=pad,
        mask="not_pad",
        image_outputs=("embedding", "image_embedding"),
        text_outputs=("embedding", "text_embedding"),
    )


def _immich_image(config: Config) -> ImageSpec:
    size = config["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise PullError(f"visual/preprocess_cfg.json: size must be square, not {size}")
    fill = int(config.get("fill_color") or 0)
    return ImageSpec(
        size=sides.pop(),
        resize=config.get("resize_mode", "shortest"),
        interpolation=_filter(
            "visual/preprocess_cfg.json: interpolation", config.get("interpolation", "bicubic")
        ),
        fill=(fill, fill, fill),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _filter(field: str, value: object) -> Literal["bilinear", "bicubic"]:
    if value not in _FILTERS:
        raise PullError(f"{field} must be bilinear (2) or bicubic (3), not {value!r}")
    return _FILTERS[value]


def _read_json(local: Path, path: str) -> Config:
    try:
        document = json.loads(local.read_bytes())
    except (OSError, ValueError) as error:
        raise PullError(f"{path} is no JSON file ({error})") from error
    if not isinstance(document, dict):
        raise PullError(f"{path} must be a JSON object")
    return document

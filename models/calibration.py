"""8-bit integers throughout: weights and activations, whose ranges are measured on the user's own pictures.

The quantisation is NNCF's: every weight and activation gets a scale, biases are corrected for what was lost,
and SmoothQuant (Xiao et al. 2023) can move outliers of activations into the weights before. What comes out is
an ordinary ONNX graph with QuantizeLinear and DequantizeLinear nodes, which every runtime understands.

Only the export imports this module.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.check_set import pictures_of, texts_of
from models.errors import ExportError, ImageError
from models.manifest import ImageSpec
from models.preprocess import Preprocessor
from models.tokenizer import Tokenizer
from models.towers import quiet, weights_beside

Samples: TypeAlias = Sequence[NDArray[Any]]

# Ranges settle long before; the time and the memory they take do not.
_MOST = 300
_MAX_PIXELS = 1 << 30
_UNSMOOTHED = -1  # NNCF's word for it
_PRODUCTS = {"MatMul", "Gemm"}
_SEED = 1  # other texts than those the export is checked with


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Pictures (encoded files) and texts like those the model will meet; general texts are added to them."""

    pictures: tuple[bytes, ...]
    texts: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: Path, texts: Path | None = None) -> Calibration:
        """The pictures of a folder and the lines of a file; of more than 300 every so-many-th is taken.

        Raises:
            ExportError: there is no such folder or file, or nothing of use in it.
        """
        pictures = pictures_of(images, "calibration_images")
        return cls(pictures=_some(pictures), texts=() if texts is None else _some(_lines(texts)))

    def pixels(self, spec: ImageSpec) -> Samples:
        """Batches of one picture, uint8 (1, H, W, 3).

        Raises:
            ExportError: a picture cannot be decoded.
        """
        preprocess = Preprocessor(spec, max_pixels=_MAX_PIXELS)
        try:
            return [preprocess(picture)[None] for picture in self.pictures]
        except ImageError as error:
            raise ExportError(f"calibration_images: {error}") from error

    def tokens(self, tokenizer: Tokenizer, context_length: int) -> Samples:
        """Batches of one text, int64 (1, length)."""
        texts = (*texts_of(context_length, _SEED), *self.texts)
        return [tokenizer.pad([text.ids]) for text in tokenizer(texts)]


def quantise(
    path: Path, *, samples: Samples, smoothing: float | None = None, float_patches: bool = False
) -> None:
    """Rewrite the graph ``path`` in 8-bit integers; with ``float_patches`` not what looks at pixels.

    Those are convolutions, and the first product of a picture tower that has none.
    ``smoothing`` is SmoothQuant's alpha, the share of the outliers that the weights take over, 0..1; None
    leaves it out. Ranges hold every value seen: NNCF's usual mean of the samples' extremes cuts off what a
    few samples need (embedded model, smallest cosine of a prompt: 0.987, and 0.9995 with whole ranges).
    The projection stays in float too: it costs next to nothing, and where a mean over patches comes before
    it OpenVINO would round the mean to 8 bits, which nobody asked for (2026.4; cosine 0.977 to the others).
    Weights use 7 of their 8 bits: on x86 without VNNI instructions the products of full bytes saturate, and
    an export that was checked on one machine would be wrong on another.
    """
    import onnx

    graph, beside = onnx.load(path, load_external_data=False), weights_beside(path)
    large = beside.exists()
    with _silent_nncf() as nncf:
        from nncf.onnx.quantization.backend_parameters import BackendParameters
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        name = graph.graph.input[0].name
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(samples, lambda batch: {name: batch}),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(
                names=_projection(graph) + (_first_products(graph) if float_patches else []), validate=False
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(
                    matmul=_UNSMOOTHED if smoothing is None else smoothing
                ),
                backend_params={BackendParameters.EXTERNAL_DATA_DIR: str(path.parent.resolve())},
            ),
        )
    for old in (path, beside):
        old.unlink(missing_ok=True)
    onnx.save(quantised, path, save_as_external_data=large, location=beside.name)


def _projection(graph: Any) -> list[str]:
    """Name of the product whose result, normalised, is the features."""
    made_by = {output: node for node in graph.graph.node for output in node.output}
    node = made_by.get("features")
    while node is not None and node.op_type not in _PRODUCTS:
        node = made_by.get(node.input[0]) if node.input else None
    return [] if node is None else [node.name]


def _first_products(graph: Any) -> list[str]:
    """Names of all convolutions; of the first product where a picture tower has none."""
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    if convolutions or graph.graph.input[0].name != "pixels":
        return convolutions
    return [next(node.name for node in graph.graph.node if node.op_type in _PRODUCTS)]


@contextlib.contextmanager
def _silent_nncf() -> Iterator[Any]:
    """NNCF without its progress bars, its log, and its reports of use to Intel."""
    os.environ.setdefault("NNCF_CI", "1")  # read at import: the one way to turn the reports off
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        import nncf

        yield nncf


def _some(items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(items[place] for place in np.linspace(0, len(items) - 1, min(len(items), _MOST)).astype(int))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"calibration_texts: {path} cannot be read as text ({error})") from error
    if not lines:
        raise ExportError(f"calibration_texts: {path} has no line of text")
    return lines

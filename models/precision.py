"""Smaller number formats: float16, and 8-bit integers with and without calibration.

A precision is a ladder of recipes, the fastest first; the export climbs it until the parity gate holds.
Only the export imports this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.calibration import Samples, quantise
from models.manifest import Precision
from models.towers import quiet, weights_beside


def _same_tower(tower: nn.Module) -> nn.Module:
    return tower


def _same_file(path: Path) -> None:
    """Leave ``path`` alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``prepare`` changes a torch tower before it is exported, ``finish`` the file that came out."""

    description: str
    prepare: Callable[[nn.Module], nn.Module] = _same_tower
    finish: Callable[[Path], None] = _same_file


def _half(tower: nn.Module) -> nn.Module:
    """A copy of ``tower`` in float16 whose layer norms, and the buffers that scale pixels, stay float32.

    Besides the accuracy: ONNX Runtime's float16 LayerNormalization for the CPU gives garbage from the
    second run on or crashes (seen with 1.31; microsoft/onnxruntime issue 27768).
    """
    half = copy.deepcopy(tower)
    for child in half.children():
        child.half()
    for parameter in half.parameters(recurse=False):
        parameter.data = parameter.data.half()
    for module in half.modules():
        if isinstance(module, nn.LayerNorm):
            _in_float(module)
    return half


def _in_float(norm: nn.Module) -> None:
    """Let one layer compute in float32 between layers that compute in float16."""

    def widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].float(), *inputs[1:])

    def narrow(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.half()

    norm.float()
    norm.register_forward_pre_hook(widen)
    norm.register_forward_hook(narrow)


def _widen_softmax(path: Path) -> None:
    """Let every float16 Softmax of a graph compute in float32; weights beside the file stay as they are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph, half = model.graph, onnx.TensorProto.FLOAT16
    halves = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == half}
    nodes = []
    for node in graph.node:
        if node.op_type != "Softmax" or node.input[0] not in halves:
            nodes.append(node)
            continue
        given, taken = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{taken}_wide_input", f"{taken}_wide"
        nodes += [
            onnx.helper.make_node("Cast", [given], [node.input[0]], to=onnx.TensorProto.FLOAT),
            node,
            onnx.helper.make_node("Cast", [node.output[0]], [taken], to=half),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _quantise_weights(path: Path, *, operators: tuple[str, ...]) -> None:
    """Weights of ``operators`` as int8, a scale a channel; activations are quantised as they come.

    Weights use 7 of the 8 bits: on x86 without VNNI instructions the products of full bytes saturate,
    and an export that was checked on one machine would be wrong on another.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = weights_beside(path).exists()
    graph = onnx.load(path)
    for old in (path, weights_beside(path)):
        old.unlink(missing_ok=True)
    with quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def recipes(precision: Precision, samples: Samples | None = None) -> tuple[Recipe, ...]:
    """The ladder of ``precision``; that of int8 is another one where ``samples`` calibrate the tower."""
    if samples is None:
        return _RECIPES[precision]
    return (
        Recipe(description="int8 weights and activations", finish=partial(quantise, samples=samples)),
        Recipe(
            description="int8 weights and smoothed activations",
            finish=partial(quantise, samples=samples, smoothing=0.5),
        ),
        Recipe(
            description="int8 weights and smoothed activations, convolutions and patches in float32",
            finish=partial(quantise, samples=samples, smoothing=0.5, float_patches=True),
        ),
    )


_RECIPES: dict[Precision, tuple[Recipe, ...]] = {
    "fp32": (Recipe(description="float32"),),
    "fp16": (
        Recipe(description="float16, layer norms in float32", prepare=_half),
        Recipe(
            description="float16, layer norms and softmax in float32", prepare=_half, finish=_widen_softmax
        ),
    ),
    "int8": (
        Recipe(
            description="int8 weights and token embeddings",
            finish=partial(_quantise_weights, operators=("MatMul", "Gemm", "Gather")),
        ),
        Recipe(description="int8 weights", finish=partial(_quantise_weights, operators=("MatMul", "Gemm"))),
    ),
}

"""Model folders under the serving contract, written node by node in milliseconds and without torch.

The towers know nothing, but tell every picture and every text apart, whatever the batch they run in: that
is all a test of the service needs. ``work`` adds layers, for tests in which the encoder must be what takes
the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from models.manifest import (
    IMAGE_GRAPH,
    TEXT_GRAPH,
    TOKENIZER,
    ImageSpec,
    ModelManifest,
    ScoringSpec,
    TextSpec,
    file_entry,
)

SIZE, PATCH, WIDTH, DIM, CONTEXT = 32, 8, 64, 48, 160
_PAD, _START, _END = "<pad>", "<start>", "<end>"
_TOKENS = (_PAD, _START, _END, *sorted(pre_tokenizers.ByteLevel.alphabet()))
_VOCABULARY = {token: number for number, token in enumerate(_TOKENS)}
_OPSET = 18


def write_toy_model(
    folder: Path,
    *,
    name: str = "toy",
    seed: int = 0,
    work: int = 0,
    size: int = SIZE,
    dim: int = DIM,
    **scoring: Any,
) -> Path:
    """Write the model ``name`` into ``folder / name``; ``scoring`` goes into its ``ScoringSpec``."""
    place = folder / name
    place.mkdir(parents=True)
    (place / IMAGE_GRAPH).write_bytes(_image_graph(seed, size, dim, work))
    (place / TEXT_GRAPH).write_bytes(_text_graph(seed + 1, dim))
    _write_tokenizer(place / TOKENIZER)
    write_manifest(place, name=name, size=size, dim=dim, **scoring)
    return place


def write_manifest(place: Path, *, name: str, size: int = SIZE, dim: int = DIM, **scoring: Any) -> None:
    """Describe the files in ``place`` as they are now."""
    ModelManifest(
        name=name,
        architecture="toy",
        embedding_dim=dim,
        image=ImageSpec(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        text=TextSpec(
            context_length=CONTEXT,
            cleaning="whitespace",
            pad_token=_VOCABULARY[_PAD],
            end_token=_VOCABULARY[_END],
            dynamic_length=True,
        ),
        scoring=ScoringSpec(**({"logit_scale": 20.0} | scoring)),
        opset=_OPSET,
        files={file: file_entry(place / file) for file in (IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER)},
    ).write(place)


class _Graph:
    """Nodes and weights under construction; calling it adds a node and gives its output's name."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, *shape: int) -> str:
        return self.constant(self._random.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"constant_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def __call__(self, operator: str, *sources: str, into: str = "", **attributes: Any) -> str:
        target = into or f"node_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, sources, [target], **attributes))
        return target

    def serialise(self, given: Any, dim: int) -> bytes:
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", dim])
        graph = helper.make_graph(self._nodes, "toy", [given], [features], self._weights)
        imports = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def _image_graph(seed: int, size: int, dim: int, work: int) -> bytes:
    """Pixels → patches → ``work`` residual layers a patch → one projection of all patches."""
    graph = _Graph(seed)
    across = size // PATCH
    middle = graph.constant(127.5, np.float32)
    values = graph("Div", graph("Sub", graph("Cast", "pixels", to=TensorProto.FLOAT), middle), middle)
    cut = graph.constant([0, across, PATCH, across, PATCH, 3], np.int64)
    cells = graph("Transpose", graph("Reshape", values, cut), perm=[0, 1, 3, 2, 4, 5])
    patches = graph("Reshape", cells, graph.constant([0, across * across, PATCH * PATCH * 3], np.int64))
    states = graph("Tanh", graph("MatMul", patches, graph.weight(PATCH * PATCH * 3, WIDTH)))
    for _ in range(work):
        wide = graph("Relu", graph("MatMul", states, graph.weight(WIDTH, 16 * WIDTH)))
        states = graph("Tanh", graph("Add", states, graph("MatMul", wide, graph.weight(16 * WIDTH, WIDTH))))
    flat = graph("Flatten", states)
    _normalised(graph, graph("MatMul", flat, graph.weight(across * across * WIDTH, dim)))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    return graph.serialise(pixels, dim)


def _text_graph(seed: int, dim: int) -> bytes:
    """Causal, so that the order of tokens counts; padding is masked out, so that its length does not."""
    graph = _Graph(seed)
    states = graph("Gather", graph.weight(len(_VOCABULARY), WIDTH), "tokens")
    scaled = graph("Mul", states, graph.constant(np.sqrt(len(_VOCABULARY)) / 4, np.float32))
    running = graph("Sin", graph("CumSum", scaled, graph.constant(1, np.int64)))
    is_pad = graph("Equal", "tokens", graph.constant(_VOCABULARY[_PAD], np.int64))
    real = graph("Cast", graph("Not", is_pad), to=TensorProto.FLOAT)
    kept = graph("Mul", running, graph("Unsqueeze", real, graph.constant([2], np.int64)))
    pooled = graph("ReduceSum", kept, graph.constant([1], np.int64), keepdims=0)
    _normalised(graph, graph("MatMul", pooled, graph.weight(WIDTH, dim)))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    return graph.serialise(tokens, dim)


def _normalised(graph: _Graph, raw: str) -> None:
    length = graph("ReduceL2", raw, graph.constant([-1], np.int64), keepdims=1)
    graph("Div", raw, length, into="features")


def _write_tokenizer(path: Path) -> None:
    """One token a byte."""
    backend = Tokenizer(models.BPE(vocab=_VOCABULARY, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(token, _VOCABULARY[token]) for token in (_START, _END)],
    )
    backend.save(str(path))

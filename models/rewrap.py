"""Graph surgery: a CLIP tower as somebody else exported it → the one contract every model here obeys.

The arithmetic of the original is never touched. Nodes are put before it (uint8 pixels to the floats it was
exported for; int64 tokens to its integers and, where it wants one, the attention mask) and behind it (the
L2 norm in float32), and what neither leads to nor follows from these is pruned.

Needs the ``onnx`` package, so it belongs to the extra ``export``; serving never imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.errors import ExportError

MaskRule = Literal["none", "to_end", "not_pad", "ones"]

MASK_INPUT = "attention_mask"
INLINE_LIMIT = 1 << 30  # protobuf stops at 2 GiB; weights above this go into a file of their own
_OURS = "clipserve/"  # keeps our names apart from the original's
_CONTRACT = ("pixels", "tokens", "features")
_IMAGE_RANK = 4
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_INTS = (TensorProto.INT64, TensorProto.INT32)


def load_graph(path: Path) -> ModelProto:
    """Read an ONNX file, external weights included.

    Raises:
        ExportError: the file, or the weights it points to, cannot be read.
    """
    try:
        return onnx.load(path)
    except Exception as error:
        raise ExportError(f"{path.name} is no readable ONNX graph: {error}") from error


def external_files(path: Path) -> tuple[str, ...]:
    """Names of the files beside ``path`` that hold its weights; empty when they lie inside it.

    Raises:
        ExportError: the file is no ONNX graph, or points outside its folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path.name} is no readable ONNX graph: {error}") from error
    entries = (entry for tensor in _tensors(model.graph) for entry in tensor.external_data)
    names = sorted({str(entry.value) for entry in entries if entry.key == "location"})
    astray = [name for name in names if Path(name).name != name]
    if astray:
        raise ExportError(f"{path.name} points to weights in another folder: {astray[0]!r}")
    return tuple(names)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``; weights above ``INLINE_LIMIT`` bytes go to ``path`` + ``.data``."""
    large = sum(tensor.ByteSize() for tensor in model.graph.initializer) > INLINE_LIMIT
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def real_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs a caller feeds: old exporters list every weight among ``graph.input`` as well."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def dims(value: ValueInfoProto) -> tuple[int | None, ...]:
    """Declared shape of an input or output, None for every dimension that may vary."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
    )


def image_input(model: ModelProto) -> ValueInfoProto | None:
    """The picture input, float (batch, 3, H, W); None where the graph has none."""
    pictures = [
        value
        for value in real_inputs(model.graph)
        if value.type.tensor_type.elem_type in _FLOATS and len(dims(value)) == _IMAGE_RANK
    ]
    return pictures[0] if len(pictures) == 1 else None


def token_input(model: ModelProto) -> ValueInfoProto | None:
    """The token input, int32 or int64 (batch, length); None where the graph has none."""
    tokens = [
        value
        for value in real_inputs(model.graph)
        if value.type.tensor_type.elem_type in _INTS and len(dims(value)) == 2 and value.name != MASK_INPUT
    ]
    return tokens[0] if len(tokens) == 1 else None


def mask_input(model: ModelProto) -> ValueInfoProto | None:
    """The attention mask input (batch, length); None where the graph has none."""
    return next((value for value in real_inputs(model.graph) if value.name == MASK_INPUT), None)


def pick_output(model: ModelProto, names: Sequence[str]) -> str:
    """The first of ``names`` that the graph has, or its only output.

    Raises:
        ExportError: the graph has several outputs and none of these names.
    """
    outputs = [str(value.name) for value in model.graph.output]
    for name in names:
        if name in outputs:
            return name
    if len(outputs) == 1 and len(dims(model.graph.output[0])) in {0, 2}:
        return outputs[0]
    raise ExportError(f"the graph has the outputs {', '.join(outputs)}, and none of {', '.join(names)}")


def tower(model: ModelProto, output: str) -> ModelProto:
    """A graph of ``output`` alone: nodes, weights and inputs that do not lead to it are left out."""
    source = model.graph
    needed, nodes = {output}, []
    for node in reversed(source.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    pruned = ModelProto(
        ir_version=max(model.ir_version, 4),  # before 4 every weight is an input too
        producer_name="clipserve",
        opset_import=model.opset_import,
        functions=model.functions,
    )
    # Filled piece by piece: protobuf cannot copy a graph of more than 2 GiB as a whole.
    graph = pruned.graph
    graph.name = source.name or "tower"
    graph.node.extend(reversed(nodes))
    graph.input.extend(value for value in real_inputs(source) if value.name in needed)
    graph.output.extend(value for value in source.output if value.name == output)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in needed)
    return pruned


def wrap_image(
    original: ModelProto, *, size: int, mean: Sequence[float], std: Sequence[float], embedding_dim: int
) -> ModelProto:
    """``pixels`` uint8 (batch, size, size, 3) → ``features`` float32 (batch, embedding_dim), norm 1.

    Divides by 255, subtracts ``mean`` and divides by ``std``, each in float32 and in this order, as the
    preprocessing that the original was exported for does: folded into one step the sums would round
    differently, which an int8 graph answers with other features.

    ``original`` is a ``tower``; it is changed in place and returned.

    Raises:
        ExportError: the original takes something else than one batch of pictures of this size.
    """
    picture = image_input(original)
    if picture is None or len(real_inputs(original.graph)) != 1:
        raise ExportError(f"the image graph takes {_listed(original)}, not one batch of pictures")
    fixed = [dim for dim in dims(picture)[2:] if dim is not None]
    if any(dim != size for dim in fixed):
        raise ExportError(f"the image graph takes pictures of {fixed} pixels, its preprocessing makes {size}")
    graph = _Wrapper(original)
    (inner,) = original.graph.input
    planes = graph.constant("planes", np.array(255, np.float32))
    means = graph.constant("mean", np.array(mean, np.float32).reshape(1, 3, 1, 1))
    deviations = graph.constant("std", np.array(std, np.float32).reshape(1, 3, 1, 1))
    value = graph.before("Transpose", "pixels", perm=[0, 3, 1, 2])
    value = graph.before("Cast", value, to=TensorProto.FLOAT)
    value = graph.before("Div", value, planes)
    value = graph.before("Sub", value, means)
    value = graph.before("Div", value, deviations)
    graph.feed(inner, value)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    return graph.finish(pixels, embedding_dim)


def wrap_text(
    original: ModelProto, *, mask: MaskRule, end_token: int | None, pad_token: int, embedding_dim: int
) -> ModelProto:
    """``tokens`` int64 (batch, length) → ``features`` float32 (batch, embedding_dim), norm 1.

    ``mask`` says which tokens the original may look at: ``to_end`` up to and including the first end
    token, ``not_pad`` all but padding, ``ones`` all, ``none`` when it takes no mask. ``original`` is a
    ``tower``; it is changed in place and returned.

    Raises:
        ExportError: the original takes something else than tokens and a mask.
    """
    tokens, masked = token_input(original), mask_input(original) is not None
    if tokens is None or len(real_inputs(original.graph)) != 1 + masked:
        raise ExportError(f"the text graph takes {_listed(original)}, not tokens and an {MASK_INPUT}")
    graph = _Wrapper(original)
    for inner in original.graph.input:
        if inner.name.endswith(MASK_INPUT):
            graph.feed(inner, _seen(graph, mask, end_token=end_token, pad_token=pad_token))
        else:
            graph.feed(inner, "tokens")
    length = dims(tokens)[1] or "length"
    declared = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", length])
    return graph.finish(declared, embedding_dim)


def parameter_count(models: Iterable[ModelProto]) -> int:
    """How many weights the graphs hold."""
    return sum(int(np.prod(tensor.dims)) for model in models for tensor in model.graph.initializer)


class _Wrapper:
    """Puts nodes before and behind a graph of one output, under names that cannot clash with its own."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._before: list[NodeProto] = []
        del model.graph.value_info[:]  # shapes of the batch it was exported with
        _rename(model.graph, {name: f"{_OURS}original/{name}" for name in _CONTRACT})
        if any(dims(value)[0] is not None for value in model.graph.input):
            _one_by_one(model)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A weight of that name; returns what to refer to it by."""
        self._model.graph.initializer.append(numpy_helper.from_array(value, _OURS + name))
        return _OURS + name

    def before(self, operator: str, *sources: str, **attributes: Any) -> str:
        """One more node before the original; returns the name of what it gives."""
        target = f"{_OURS}{operator}_{len(self._before)}"
        self._before.append(helper.make_node(operator, sources, [target], **attributes))
        return target

    def feed(self, inner: ValueInfoProto, source: str) -> None:
        """Cast ``source`` to what the original's input ``inner`` wants, and feed it."""
        kind = inner.type.tensor_type.elem_type
        self._before.append(helper.make_node("Cast", [source], [inner.name], to=kind))

    def finish(self, declared: ValueInfoProto, embedding_dim: int) -> ModelProto:
        """Append the norm, and make ``declared`` and ``features`` the only input and output."""
        graph = self._model.graph
        wide, norm, safe = (_OURS + name for name in ("wide", "norm", "safe_norm"))
        tiny = self.constant("tiny", np.array(1e-12, np.float32))  # torch.nn.functional.normalize's eps
        length, axes = _with_axes("ReduceL2", wide, norm, -1, inputs_since=18, model=self._model)
        behind = [
            helper.make_node("Cast", [graph.output[0].name], [wide], to=TensorProto.FLOAT),
            length,
            helper.make_node("Max", [norm, tiny], [safe]),
            helper.make_node("Div", [wide, safe], ["features"]),
        ]
        nodes = [*self._before, *graph.node, *behind]
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", embedding_dim])
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.initializer.extend(axes)
        graph.input.append(declared)
        graph.output.append(features)
        return self._model


def opset(model: ModelProto) -> int:
    """Version of the standard operators the graph is written in."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}))


def _one_by_one(model: ModelProto) -> None:
    """Run a graph that was exported for a batch of one over every item of a batch, inside the graph.

    Shapes of one are folded into such exports all over (class token, attention reshapes), so relaxing them
    would be guesswork; ``Scan`` leaves the original as it is. Weights stay outside its body, shared.
    """
    graph = model.graph
    items, nodes, weights = [], [], []
    for value in graph.input:
        if dims(value)[0] != 1:
            raise ExportError(f"{value.name} has a fixed batch of {dims(value)[0]}")
        item = f"{_OURS}item/{value.name}"
        node, axes = _with_axes("Unsqueeze", item, value.name, 0, inputs_since=13, model=model)
        items.append(helper.make_tensor_value_info(item, value.type.tensor_type.elem_type, dims(value)[1:]))
        nodes.append(node)
        weights.extend(axes)
    output, kind = graph.output[0].name, graph.output[0].type.tensor_type.elem_type
    result = f"{_OURS}item/{output}"
    last, axes = _with_axes("Squeeze", output, result, 0, inputs_since=13, model=model)
    body = helper.make_graph(
        [*nodes, *graph.node, last],
        "one_item",
        items,
        [helper.make_tensor_value_info(result, kind, None)],
    )
    # Inside the body the original's inputs are its own values, so outside they need other names.
    outside = [f"{_OURS}batch/{value.name}" for value in graph.input]
    scan = helper.make_node(
        "Scan", outside, [f"{_OURS}batch/{output}"], body=body, num_scan_inputs=len(outside)
    )
    for value, name in zip(graph.input, outside, strict=True):
        value.name = name
    graph.output[0].name = scan.output[0]
    del graph.node[:]
    graph.node.append(scan)
    graph.initializer.extend([*weights, *axes])


def _seen(graph: _Wrapper, rule: MaskRule, *, end_token: int | None, pad_token: int) -> str:
    """Name of the mask of the ``tokens`` that the original may look at, bool (batch, length)."""
    if rule == "to_end" and end_token is not None:
        is_end = graph.before("Equal", "tokens", graph.constant("end_token", np.array(end_token, np.int64)))
        counts = graph.before("Cast", is_end, to=TensorProto.INT32)
        along = graph.constant("along", np.array(1, np.int64))
        ends_before = graph.before("CumSum", counts, along, exclusive=1)
        return graph.before("Equal", ends_before, graph.constant("none", np.array(0, np.int32)))
    if rule == "not_pad":
        is_pad = graph.before("Equal", "tokens", graph.constant("pad_token", np.array(pad_token, np.int64)))
        return graph.before("Not", is_pad)
    if rule == "ones":
        return graph.before("Equal", "tokens", "tokens")
    raise ExportError(f"the text graph takes an {MASK_INPUT}, and the rule {rule!r} gives none")


def _with_axes(
    operator: str, source: str, target: str, axis: int, *, inputs_since: int, model: ModelProto
) -> tuple[NodeProto, list[TensorProto]]:
    """A node over one axis, and the weight it needs: axes became an input in opset ``inputs_since``."""
    if opset(model) < inputs_since:
        return helper.make_node(operator, [source], [target], axes=[axis]), []
    axes = numpy_helper.from_array(np.array([axis], np.int64), f"{target}/axes")
    return helper.make_node(operator, [source, axes.name], [target]), [axes]


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values throughout a graph and its subgraphs."""
    for named in [*graph.input, *graph.output, *graph.initializer]:
        named.name = names.get(named.name, named.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for inner in _subgraphs(node):
            _rename(inner, names)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: NodeProto) -> Iterator[str]:
    """Every name a node may read, those its subgraphs take from outside included."""
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)
        yield from (value.name for value in graph.output)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
        for inner in _subgraphs(node):
            yield from _tensors(inner)


def _listed(model: ModelProto) -> str:
    return ", ".join(f"{value.name} {list(dims(value))}" for value in real_inputs(model.graph)) or "nothing"

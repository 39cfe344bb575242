"""The two towers of an open_clip model as torch modules that keep the graph contract, and their ONNX files.

Only the export imports this module: it needs torch, which serving must never load.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.lean import LeanTransformer, LeanVisionTransformer, lean_transformer, lean_visual
from models.manifest import ImageSpec

# A protobuf message ends at 2 GiB; a graph's own nodes need some of it.
EXTERNAL_DATA_BYTES = 2_000_000_000

_END_TOKEN = {"argmax", "eos"}  # the kinds of pooling that read the end token
_CHATTERERS = ("torch", "onnxscript", "open_clip", "timm", "transformers", "onnx", "nncf", "copyreg")


class ImageTower(nn.Module):
    """``pixels`` uint8 (batch, H, W, 3) → features float32 (batch, D), L2-normalised.

    Scaling to 0..1, mean and standard deviation are one multiplication and one subtraction a channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, visual: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.visual = lean_visual(_fused(visual), spec)
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (spec.mean, spec.std)
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (mean / std).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """One batch of pictures."""
        if isinstance(self.visual, LeanVisionTransformer):
            return _normalised(self.visual(pixels))
        x = pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale - self.shift
        return _normalised(self.visual(x.to(self.weight_dtype)))

    @property
    def weight_dtype(self) -> torch.dtype:
        """What the network computes in; pixels are scaled in float32 all the same."""
        return next(self.visual.parameters()).dtype


class NativeTextTower(nn.Module):
    """open_clip's own text transformer, for any length up to the context's.

    Follows ``open_clip.CLIP.encode_text``, which adds the whole positional embedding and the whole causal
    mask; here both are cut to the sequence, so that the length can be a free dimension of the graph.
    """

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.token_embedding: nn.Module = text.get_submodule("token_embedding")
        transformer = text.get_submodule("transformer")
        self.transformer: nn.Module = lean_transformer(transformer) or transformer
        self.ln_final: nn.Module = text.get_submodule("ln_final")
        self.positional_embedding: nn.Parameter = text.get_parameter("positional_embedding")
        self.text_projection: Any = text.text_projection
        self.pool_type, self.eos_id = _pooling(text)
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", getattr(text, "attn_mask", None))

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` int64 (batch, length) → features float32 (batch, D), L2-normalised."""
        from open_clip.transformer import text_global_pool

        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length].to(x.dtype)
        if isinstance(self.transformer, LeanTransformer) and self.pool_type in _END_TOKEN:
            x = self.ln_final(self.transformer.pooled(x, self._ends(tokens), mask))
        else:
            x = self.ln_final(self.transformer(x, attn_mask=mask))
            x = text_global_pool(x, tokens, self.pool_type, eos_token_id=self.eos_id)
        return _normalised(_projected(x, self.text_projection))

    def _ends(self, tokens: Tensor) -> Tensor:
        """The place (batch,) of each end token: the highest id of all, or the first that is ``eos_id``."""
        marked = (
            tokens if self.eos_id is None or self.pool_type == "argmax" else (tokens == self.eos_id).int()
        )
        return marked.argmax(dim=-1)


class WholeTextTower(nn.Module):
    """A text tower run as it is: CoCa's, and those made of a transformers model."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` int64 (batch, length) → features float32 (batch, D), L2-normalised."""
        return _normalised(self.text(tokens))


def text_tower(model: nn.Module) -> nn.Module:
    """The module to export for ``model``'s texts."""
    text = _text(model)
    return NativeTextTower(text) if _is_native(text) else WholeTextTower(text)


def may_vary_length(model: nn.Module) -> bool:
    """Whether the text tower's structure lets a sequence be cut behind its last real token.

    So it is where attention is causal and the end token is pooled, and where padding is masked. It is a
    reason to try, not the proof: the export still compares cut sequences with padded ones.
    """
    text = _text(model)
    if _is_native(text):
        return getattr(text, "attn_mask", None) is not None and _pooling(text)[0] in _END_TOKEN
    return hasattr(getattr(text, "config", None), "pad_token_id")


def write_graph(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    dynamic_length: bool = False,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> int:
    """Export ``tower`` to the ONNX file ``path``, with a free batch and, if asked for, a free length.

    ``example`` is a batch of two at full length: of one, the tracer would take the 1 for a constant.
    Weights of more than ``external_data_bytes`` lie in ``path`` + ``.data``. Returns the opset.
    """
    dims = {0: torch.export.Dim("batch")}
    if dynamic_length:
        dims[1] = torch.export.Dim("length", max=example.shape[1])
    with quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            tower.eval(),
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=["features"],
            dynamic_shapes=(dims,),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        _strip(program.model)
        program.save(path, external_data=weight_bytes(tower) > external_data_bytes)
        return program.model.opset_imports[""]


def weights_beside(path: Path) -> Path:
    """The file that holds the weights of the graph ``path`` where they are too large to lie in it."""
    return path.with_name(f"{path.name}.data")


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of torch, onnxscript and open_clip off the screen; errors still come through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for module in _CHATTERERS:
                warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
            yield
    finally:
        logging.disable(disabled)


def reason(error: BaseException) -> str:
    """The cause and its first line; exporters and loaders wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _text(model: nn.Module) -> nn.Module:
    """``open_clip.CLIP`` keeps the parts of its text tower in itself, the other classes in ``.text``."""
    text = getattr(model, "text", model)
    assert isinstance(text, nn.Module)
    return text


def _is_native(text: nn.Module) -> bool:
    """CoCa's text tower appends a class token and a padding mask, so it is run as it is."""
    return hasattr(text, "token_embedding") and getattr(text, "cls_emb", None) is None


def _pooling(text: nn.Module) -> tuple[str, int | None]:
    """``CLIP`` prefixes what ``TextTransformer`` calls ``pool_type`` and ``eos_id``."""
    found: Any = text
    if hasattr(text, "text_pool_type"):
        return found.text_pool_type, found.text_eos_id
    return found.pool_type, found.eos_id


def _projected(x: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return x
    projected: Tensor = projection(x) if isinstance(projection, nn.Module) else x @ projection
    return projected


def _normalised(output: Any) -> Tensor:
    """Features of length one, float32 whatever the network computes in; CoCa answers (features, tokens)."""
    features = output[0] if isinstance(output, tuple) else output
    return functional.normalize(features.float(), dim=-1)


def _fused(visual: nn.Module) -> nn.Module:
    """MobileOne and RepVGG blocks train with parallel branches that are one convolution at inference."""
    if not any(hasattr(module, "reparameterize") for module in visual.modules()):
        return visual
    from timm.utils.model import reparameterize_model

    fused: nn.Module = reparameterize_model(copy.deepcopy(visual).eval())
    return fused


def _strip(model: Any) -> None:
    """Drop the exporter's traces: they name files of its machine and can outweigh a small model."""
    graph = model.graph
    model.doc_string = graph.doc_string = None
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        values.extend(node.outputs)
    for holder in (model, graph, *values):
        holder.metadata_props.clear()

"""Repositories of tiny CLIP-like models as hubs hold them, written node by node: no torch, a few hundred KB.

The towers are not transformers, but have what pulling must get right: inputs and outputs under the names
of each exporter, a text tower that pools at the end token (so its length may vary) or over everything (so
it may not), attention masks, fixed batches of one, and scores with a known logit scale.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZE, CONTEXT, DIM, WIDTH = 32, 16, 24, 40
PAD, START, END = "<pad>", "<start>", "<end>"
WORDS = (
    *(PAD, START, END, "[UNK]", "a", "red", "blue", "small", "large", "photo", "drawing", "of", "the"),
    *("dog", "house", "tree", "under", "over", "river", "7", "bright", "cat", "two"),
)
END_ID = WORDS.index(END)
LOGIT_SCALE, LOGIT_BIAS = 43.5, -9.25
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Tower:
    """Nodes and weights under construction."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        values = self._random.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(name, values.astype(np.float32))

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, operator: str, *sources: str, into: str = "", **attributes: Any) -> str:
        target = into or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, sources, [target], **attributes))
        return target

    def graph(self, inputs: list[Any], outputs: list[Any]) -> GraphProto:
        return helper.make_graph(self.nodes, "tiny", inputs, outputs, self.weights)


def add_image(tower: Tower, picture: str, output: str, hidden: str = "") -> None:
    pooled = tower("AveragePool", picture, kernel_shape=[4, 4], strides=[4, 4])
    flat = tower("Flatten", pooled)
    # A name of our own contract inside the original: the rewrapped graph must keep the two apart.
    features = tower("Tanh", tower("MatMul", flat, tower.weight("patch", 3 * 64, WIDTH)), into="features")
    if hidden:
        tower("Unsqueeze", features, tower.constant("hidden_axis", np.array([1])), into=hidden)
    tower("MatMul", features, tower.weight("image_projection", WIDTH, DIM), into=output)


def add_text(tower: Tower, tokens: str, output: str, *, mask: str = "", pool: str = "end") -> None:
    one = tower.constant("axis_one", np.array([1]))
    two = tower.constant("axis_two", np.array([2]))
    states = tower("Gather", tower.weight("vocabulary", len(WORDS), WIDTH), tokens)
    if mask:
        states = tower("Mul", states, tower("Unsqueeze", tower("Cast", mask, to=TensorProto.FLOAT), two))
    if pool == "end":
        states = tower("Tanh", tower("CumSum", states, tower.constant("along", np.array(1))))
        kind = np.int32 if tokens == "text" else np.int64
        is_end = tower("Equal", tokens, tower.constant("end", np.array(END_ID, kind)))
        weights = tower("Unsqueeze", tower("Cast", is_end, to=TensorProto.FLOAT), two)
        pooled = tower("ReduceSum", tower("Mul", states, weights), one, keepdims=0)
    else:
        pooled = tower("Tanh", tower("ReduceSum", states, one, keepdims=0))
    tower("MatMul", pooled, tower.weight("text_projection", WIDTH, DIM), into=output)


def add_scores(tower: Tower, *, bias: float = 0.0) -> None:
    axis = tower.constant("last_axis", np.array([-1]))
    for raw, unit in (("image_raw", "image_embeds"), ("text_raw", "text_embeds")):
        tower("Div", raw, tower("ReduceL2", raw, axis), into=unit)
    cosines = tower("MatMul", "image_embeds", tower("Transpose", "text_embeds"))
    scaled = tower("Mul", cosines, tower.constant("scale", np.float32(LOGIT_SCALE)))
    tower("Add", scaled, tower.constant("bias", np.float32(bias)), into="logits_per_image")


def declare(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(tower: Tower, inputs: list[Any], outputs: list[Any], opset: int = 18) -> ModelProto:
    return helper.make_model(
        tower.graph(inputs, outputs), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )


def tokenizer_json() -> bytes:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, WORDS.index(START)), (END, END_ID)]
    )
    backend.add_special_tokens([PAD, START, END])
    return backend.to_str().encode()


def _transformers_configs(kind: str) -> dict[str, bytes]:
    clip = kind == "clip"
    config = {
        "model_type": kind,
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "text_config": {"max_position_embeddings": CONTEXT},
    }
    if clip:
        config["logit_scale_init_value"] = 2.6592
    resizing = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    preprocessing = {
        **(resizing if clip else {"size": {"height": SIZE, "width": SIZE}}),
        "do_center_crop": clip,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": MEAN if clip else (0.5, 0.5, 0.5),
        "image_std": STD if clip else (0.5, 0.5, 0.5),
    }
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(preprocessing).encode(),
        "tokenizer_config.json": json.dumps({"pad_token": PAD}).encode(),
        "tokenizer.json": tokenizer_json(),
    }


PIXEL_VALUES = declare("pixel_values", TensorProto.FLOAT, "batch", 3, "height", "width")
INPUT_IDS = declare("input_ids", TensorProto.INT64, "batch", "length")
ATTENTION_MASK = declare("attention_mask", TensorProto.INT64, "batch", "length")


def transformers_split() -> dict[str, bytes]:
    """CLIP as two graphs; the trained logit scale is nowhere."""
    image, text = Tower(1), Tower(2)
    add_image(image, "pixel_values", "image_embeds", hidden="last_hidden_state")
    hidden = declare("last_hidden_state", TensorProto.FLOAT, "batch", 1, WIDTH)
    image_embeds = declare("image_embeds", TensorProto.FLOAT, "batch", DIM)
    add_text(text, "input_ids", "text_embeds", mask="attention_mask")
    text_embeds = declare("text_embeds", TensorProto.FLOAT, "batch", DIM)
    return {
        **_transformers_configs("clip"),
        "onnx/vision_model.onnx": model(image, [PIXEL_VALUES], [hidden, image_embeds]).SerializeToString(),
        "onnx/text_model.onnx": model(
            text, [INPUT_IDS, ATTENTION_MASK], [text_embeds], opset=13
        ).SerializeToString(),
    }


def combined_model(kind: str = "clip") -> ModelProto:
    clip = kind == "clip"
    both = Tower(3)
    add_image(both, "pixel_values", "image_raw")
    pool, mask = ("end", "attention_mask") if clip else ("all", "")
    add_text(both, "input_ids", "text_raw", mask=mask, pool=pool)
    add_scores(both, bias=0.0 if clip else LOGIT_BIAS)
    inputs = [INPUT_IDS, PIXEL_VALUES, *([ATTENTION_MASK] if clip else [])]
    outputs = [
        declare("logits_per_image", TensorProto.FLOAT, "image_batch", "text_batch"),
        declare("text_embeds", TensorProto.FLOAT, "text_batch", DIM),
        declare("image_embeds", TensorProto.FLOAT, "image_batch", DIM),
    ]
    return model(both, inputs, outputs)


def transformers_combined(kind: str = "clip") -> dict[str, bytes]:
    """CLIP or SigLIP as one graph with its scores."""
    return {**_transformers_configs(kind), "onnx/model.onnx": combined_model(kind).SerializeToString()}


def immich() -> dict[str, bytes]:
    """open_clip's CLIP as Immich exports it: int32 tokens, a batch of one, a fixed length."""
    image, text = Tower(4), Tower(5)
    add_image(image, "image", "embedding")
    add_text(text, "text", "embedding")
    embedding = declare("embedding", TensorProto.FLOAT, 1, DIM)
    preprocessing = {
        "size": [SIZE, SIZE],
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    config = {"embed_dim": DIM, "quick_gelu": True, "text_cfg": {"context_length": CONTEXT}}
    picture = declare("image", TensorProto.FLOAT, 1, 3, SIZE, SIZE)
    tokens = declare("text", TensorProto.INT32, 1, CONTEXT)
    return {
        "config.json": json.dumps(config).encode(),
        "visual/model.onnx": model(image, [picture], [embedding], opset=17).SerializeToString(),
        "visual/preprocess_cfg.json": json.dumps(preprocessing).encode(),
        "textual/model.onnx": model(text, [tokens], [embedding], opset=17).SerializeToString(),
        "textual/tokenizer.json": tokenizer_json(),
        "textual/tokenizer_config.json": json.dumps({"pad_token": PAD}).encode(),
    }

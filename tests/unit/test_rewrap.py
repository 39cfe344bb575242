"""Graph surgery piece by piece: what is fed to the original, in every operator version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graph surgery needs the extra 'export'")
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from models.errors import ExportError
from models.rewrap import MaskRule, pick_output, tower, wrap_image, wrap_text
from tests import tiny_onnx
from tests.tiny_onnx import DIM, END_ID, SIZE, Tower, declare

LENGTH = 6
TOKENS = np.array([[1, 5, END_ID, 0, 0, 0], [1, END_ID, 0, END_ID, 0, 0], [1, 5, 6, 7, 8, END_ID]])


def run(model: ModelProto, **feeds: Any) -> Any:
    return ort.InferenceSession(model.SerializeToString()).run(["features"], feeds)[0]


def pictures(batch: int | str, opset: int, size: int | str = SIZE) -> ModelProto:
    image = Tower(1)
    tiny_onnx.add_image(image, "image", "embedding")
    inputs = [declare("image", TensorProto.FLOAT, batch, 3, size, size)]
    return tiny_onnx.model(image, inputs, [declare("embedding", TensorProto.FLOAT, batch, DIM)], opset)


def mask_reader() -> ModelProto:
    """A text graph whose features are its attention mask."""
    text = Tower(1)
    nothing = text(
        "Mul", text("Cast", "input_ids", to=TensorProto.FLOAT), text.constant("zero", np.float32(0))
    )
    text("Add", text("Cast", "attention_mask", to=TensorProto.FLOAT), nothing, into="text_embeds")
    output = declare("text_embeds", TensorProto.FLOAT, "batch", "length")
    return tiny_onnx.model(text, [tiny_onnx.INPUT_IDS, tiny_onnx.ATTENTION_MASK], [output])


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_pixels_reach_the_original_normalised_whatever_its_batch(batch: int | str, opset: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    original = pictures(batch, opset)
    session = ort.InferenceSession(original.SerializeToString())
    values = (pixels / 255 - np.array(tiny_onnx.MEAN)) / np.array(tiny_onnx.STD)
    rows = values.transpose(0, 3, 1, 2).astype(np.float32)
    wanted = np.concatenate([session.run(None, {"image": row[None]})[0] for row in rows])

    wrapped = wrap_image(
        tower(original, "embedding"), size=SIZE, mean=tiny_onnx.MEAN, std=tiny_onnx.STD, embedding_dim=DIM
    )

    found = run(wrapped, pixels=pixels)
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ("to_end", [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
        ("not_pad", [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
        ("ones", [[1] * LENGTH] * 3),
    ],
)
def test_the_mask_shows_the_original_what_it_may_see(rule: MaskRule, seen: list[list[int]]) -> None:
    original = tower(mask_reader(), "text_embeds")
    wrapped = wrap_text(original, mask=rule, end_token=END_ID, pad_token=0, embedding_dim=LENGTH)
    found = run(wrapped, tokens=TOKENS)
    np.testing.assert_array_equal(found > 0, np.array(seen, bool))


def test_a_mask_without_a_rule_is_refused() -> None:
    with pytest.raises(ExportError, match="rule 'none' gives none"):
        wrap_text(
            tower(mask_reader(), "text_embeds"),
            mask="none",
            end_token=END_ID,
            pad_token=0,
            embedding_dim=LENGTH,
        )


def test_zero_features_stay_finite() -> None:
    wrapped = wrap_text(
        tower(mask_reader(), "text_embeds"),
        mask="not_pad",
        end_token=END_ID,
        pad_token=0,
        embedding_dim=LENGTH,
    )
    np.testing.assert_array_equal(run(wrapped, tokens=np.zeros((1, LENGTH), np.int64)), np.zeros((1, LENGTH)))


def test_what_does_not_lead_to_the_output_is_left_out() -> None:
    both = tiny_onnx.combined_model()
    image, text = tower(both, "image_embeds"), tower(both, "text_embeds")
    assert [value.name for value in image.graph.input] == ["pixel_values"]
    assert [value.name for value in text.graph.input] == ["input_ids", "attention_mask"]
    assert not {weight.name for weight in image.graph.initializer} & {
        "vocabulary",
        "text_projection",
        "scale",
    }


def test_the_wrong_kind_of_graph_is_named() -> None:
    image, text = tower(pictures("batch", 18), "embedding"), tower(mask_reader(), "text_embeds")
    with pytest.raises(ExportError, match="image graph takes input_ids"):
        wrap_image(text, size=SIZE, mean=tiny_onnx.MEAN, std=tiny_onnx.STD, embedding_dim=DIM)
    with pytest.raises(ExportError, match="text graph takes image"):
        wrap_text(image, mask="none", end_token=END_ID, pad_token=0, embedding_dim=DIM)


@pytest.mark.parametrize(
    ("batch", "size", "message"),
    [(4, SIZE, "fixed batch of 4"), ("batch", SIZE + 16, "pictures of .* pixels, its preprocessing makes")],
)
def test_shapes_that_cannot_be_served_are_named(batch: int | str, size: int, message: str) -> None:
    original = tower(pictures(batch, 18, size), "embedding")
    with pytest.raises(ExportError, match=message):
        wrap_image(original, size=SIZE, mean=tiny_onnx.MEAN, std=tiny_onnx.STD, embedding_dim=DIM)


def test_an_output_is_chosen_by_name_or_because_it_is_the_only_one() -> None:
    both = tiny_onnx.combined_model()
    assert pick_output(both, ("absent", "image_embeds")) == "image_embeds"
    with pytest.raises(ExportError, match="logits_per_image, text_embeds, image_embeds, and none of absent"):
        pick_output(both, ("absent",))
    assert pick_output(pictures("batch", 18), ("absent",)) == "embedding"

"""``verify`` finds each way in which a model folder can be broken, and passes one that is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the models of this test are written with onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import (
    ImageSpec,
    ModelManifest,
    ParityReport,
    ScoringSpec,
    TextSpec,
    TowerParity,
    file_entry,
)
from models.rewrap import save_graph, wrap_image, wrap_text
from models.verify import VerifyReport, verify
from tests import tiny_onnx
from tests.tiny_onnx import CONTEXT, DIM, END_ID, SIZE, Tower, declare

PARITY = TowerParity(items=1, min_cosine=1.0, max_difference=0.0)
Break = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image, text = Tower(1), Tower(2)
    tiny_onnx.add_image(image, "pixel_values", "image_embeds")
    tiny_onnx.add_text(text, "input_ids", "text_embeds")
    pictures = tiny_onnx.model(
        image, [tiny_onnx.PIXEL_VALUES], [declare("image_embeds", TensorProto.FLOAT, "batch", DIM)]
    )
    texts = tiny_onnx.model(
        text, [tiny_onnx.INPUT_IDS], [declare("text_embeds", TensorProto.FLOAT, "batch", DIM)]
    )
    save_graph(
        wrap_image(pictures, size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), embedding_dim=DIM),
        tmp_path / "image.onnx",
    )
    save_graph(
        wrap_text(texts, mask="none", end_token=END_ID, pad_token=0, embedding_dim=DIM),
        tmp_path / "text.onnx",
    )
    (tmp_path / "tokenizer.json").write_bytes(tiny_onnx.tokenizer_json())
    ModelManifest(
        name="tiny",
        architecture="tiny",
        embedding_dim=DIM,
        image=ImageSpec(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        text=TextSpec(context_length=CONTEXT, end_token=END_ID, dynamic_length=True),
        scoring=ScoringSpec(logit_scale=100),
        opset=18,
        files={name: file_entry(tmp_path / name) for name in ("image.onnx", "text.onnx", "tokenizer.json")},
        parity=ParityReport(reference="itself", batches=(1,), image=PARITY, text=PARITY, top1_agreement=1.0),
    ).write(tmp_path)
    return tmp_path


def failures(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if not check.passed}


def rewrite(folder: Path, **fields: object) -> None:
    """Change the manifest, and let its hashes be those of the files as they now are."""
    document = json.loads((folder / "model.json").read_text()) | fields
    document["files"] = {name: file_entry(folder / name).model_dump() for name in document["files"]}
    (folder / "model.json").write_text(json.dumps(document))


def change(folder: Path, name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / name)
    edit(model)
    onnx.save(model, folder / name)
    rewrite(folder)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def test_a_whole_model_passes_every_check(folder: Path) -> None:
    report = verify(folder)
    assert report.passed, failures(report)
    assert report.model == "tiny"
    assert [check.name for check in report.checks] == [
        "manifest",
        "hashes",
        "parity report",
        "tokenizer",
        "image contract",
        "text contract",
        "image features",
        "image batch invariance",
        "text features",
        "text batch invariance",
        "text length invariance",
    ]
    details = {check.name: check.detail for check in report.checks}
    assert details["image contract"] == f"pixels (any, {SIZE}, {SIZE}, 3) → features (any, {DIM})"


def test_a_missing_manifest_is_the_only_finding(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert not report.passed
    assert [check.name for check in report.checks] == ["manifest"]


def test_a_changed_byte_is_found(folder: Path) -> None:
    path = folder / "image.onnx"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    assert "does not match its SHA-256" in failures(verify(folder))["hashes"]


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    found = failures(verify(folder))
    assert f"{name} is missing" in found["hashes"]
    tower = {"image.onnx": "image contract", "text.onnx": "text contract", "tokenizer.json": "tokenizer"}[
        name
    ]
    assert name in found[tower]


def test_a_file_that_is_no_graph_is_found(folder: Path) -> None:
    (folder / "text.onnx").write_bytes(b"not a graph")
    rewrite(folder)
    assert "text.onnx cannot be loaded" in failures(verify(folder))["text contract"]


def test_swapped_towers_are_named(folder: Path) -> None:
    image, text = (folder / name for name in ("image.onnx", "text.onnx"))
    body = image.read_bytes()
    image.write_bytes(text.read_bytes())
    text.write_bytes(body)
    rewrite(folder)
    found = failures(verify(folder))
    assert found["image contract"] == (
        "image.onnx has the input tokens, not pixels: image.onnx and text.onnx are swapped"
    )
    assert found["text contract"].endswith("image.onnx and text.onnx are swapped")


@pytest.mark.parametrize(
    ("fields", "check", "message"),
    [
        ({"embedding_dim": DIM + 1}, "image contract", f"features is tensor(float) (any, {DIM}), not"),
        (
            {"image": {"size": SIZE + 8, "mean": [0.5] * 3, "std": [0.5] * 3}},
            "image contract",
            f"pixels is tensor(uint8) (any, {SIZE}, {SIZE}, 3), not tensor(uint8) (any, 40, 40, 3)",
        ),
        ({"parity": None}, "parity report", "holds no parity report"),
        (
            {"text": {"context_length": CONTEXT, "end_token": END_ID + 1, "dynamic_length": True}},
            "tokenizer",
            f"does not end with the end token {END_ID + 1}",
        ),
    ],
)
def test_a_manifest_that_says_something_else_is_found(
    folder: Path, fields: dict[str, object], check: str, message: str
) -> None:
    rewrite(folder, **fields)
    assert message in failures(verify(folder))[check]


def test_a_tokenizer_that_does_not_know_plain_words_is_found(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    del document["model"]["vocab"]["dog"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    rewrite(folder)
    assert "does not know its words" in failures(verify(folder))["tokenizer"]


def test_a_second_output_is_found(folder: Path) -> None:
    def add_output(model: onnx.ModelProto) -> None:
        model.graph.output.append(helper.make_tensor_value_info("clipserve/norm", TensorProto.FLOAT, None))

    change(folder, "image.onnx", add_output)
    assert (
        "has the output features, clipserve/norm, not features" in failures(verify(folder))["image contract"]
    )


def test_features_that_are_not_finite_are_found(folder: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        projection = weight(model, "image_projection")
        values = numpy_helper.to_array(projection).copy()
        values[0, 0] = np.inf
        projection.CopyFrom(numpy_helper.from_array(values, projection.name))

    change(folder, "image.onnx", spoil)
    assert "not finite" in failures(verify(folder))["image features"]


def test_features_that_are_not_normalised_are_found(folder: Path) -> None:
    def skip_the_norm(model: onnx.ModelProto) -> None:
        model.graph.node[-1].input[1] = "clipserve/one"
        model.graph.initializer.append(numpy_helper.from_array(np.float32([1]), "clipserve/one"))

    change(folder, "image.onnx", skip_the_norm)
    assert "not L2-normalised" in failures(verify(folder))["image features"]


def test_features_that_ignore_the_picture_are_found(folder: Path) -> None:
    def blind(model: onnx.ModelProto) -> None:
        patch = weight(model, "patch")
        patch.CopyFrom(numpy_helper.from_array(np.zeros(tuple(patch.dims), np.float32), "patch"))
        bias = numpy_helper.from_array(np.ones(DIM, np.float32), "bias")
        model.graph.initializer.append(bias)
        last = next(
            node for node in model.graph.node if node.op_type == "MatMul" and "image_embeds" in node.output
        )
        last.output[0] = "bare"
        position = list(model.graph.node).index(last) + 1
        model.graph.node.insert(position, helper.make_node("Add", ["bare", "bias"], ["image_embeds"]))

    change(folder, "image.onnx", blind)
    assert failures(verify(folder))["image features"] == "all items have the same features"


def test_features_that_depend_on_their_neighbours_are_found(folder: Path) -> None:
    def mix(model: onnx.ModelProto) -> None:
        divide = model.graph.node[-1]
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_axis"))
        share = helper.make_node("ReduceMean", [divide.input[0], "first_axis"], ["shared"])
        shifted = helper.make_node("Sub", [divide.input[0], "shared"], ["shifted"])
        kept = helper.make_node("Add", ["shifted", divide.input[0]], ["mixed"])
        length = helper.make_node("ReduceL2", ["mixed", "clipserve/norm/axes"], ["mixed_length"])
        del model.graph.node[-1]
        unit = helper.make_node("Div", ["mixed", "mixed_length"], ["features"])
        model.graph.node.extend([share, shifted, kept, length, unit])

    change(folder, "image.onnx", mix)
    found = failures(verify(folder))
    assert list(found) == ["image batch invariance"]
    assert "in batches of 2, below 0.99999" in found["image batch invariance"]


def test_a_length_that_matters_although_the_manifest_denies_it_is_found(folder: Path) -> None:
    text = Tower(2)
    tiny_onnx.add_text(text, "input_ids", "text_embeds", pool="all")
    graph = tiny_onnx.model(
        text, [tiny_onnx.INPUT_IDS], [declare("text_embeds", TensorProto.FLOAT, "batch", DIM)]
    )
    save_graph(
        wrap_text(graph, mask="none", end_token=END_ID, pad_token=0, embedding_dim=DIM), folder / "text.onnx"
    )
    rewrite(folder)
    found = failures(verify(folder))
    assert "cut to their length and padded" in found["text length invariance"]


def test_a_fixed_batch_is_found(folder: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    change(folder, "image.onnx", fix)
    assert "pixels is tensor(uint8) (1, " in failures(verify(folder))["image contract"]

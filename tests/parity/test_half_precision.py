"""float16 exports: what stays in float32, and that it does not depend on the machine that checked it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models import precision
from models.errors import ExportError
from models.export import export_open_clip
from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions

OPTIONS = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1)
PIXELS = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), np.uint8)
TEXTS = ["a cat", "two dogs under a bridge", "nothing"]


def _export(folder: Path, recipe: precision.Recipe, name: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.export_job.recipes", lambda *_: (recipe,))
        return export_open_clip("tiny-vit", destination=folder / name, precision="fp16", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_architectures: None) -> Path:
    """``tiny-vit`` by every recipe, under the number of the recipe."""
    place = tmp_path_factory.mktemp("half")
    for number, recipe in enumerate(precision.recipes("fp16")):
        _export(place, recipe, f"half-{number}")
    return place


def _nodes(path: Path, operator: str) -> Iterator[list[int]]:
    """The element types that go into and come out of each node of one kind."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        if node.op_type == operator:
            yield [types[name] for name in (node.input[0], node.output[0])]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_norms_are_float32_and_products_float16(folder: Path, tower: str) -> None:
    for number in range(len(precision.recipes("fp16"))):
        path = folder / f"half-{number}" / f"{tower}.onnx"
        norms = list(_nodes(path, "LayerNormalization"))
        assert len(norms) >= 5
        assert all(kinds == [TensorProto.FLOAT] * 2 for kinds in norms)
        assert [TensorProto.FLOAT16] * 2 in list(_nodes(path, "MatMul"))
        assert onnx.load(path, load_external_data=False).graph.output[0].type.tensor_type.elem_type == (
            TensorProto.FLOAT
        )


@pytest.mark.parametrize(("number", "kind"), [(0, TensorProto.FLOAT16), (1, TensorProto.FLOAT)])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_softmax_is_widened_by_the_second_recipe(folder: Path, tower: str, number: int, kind: int) -> None:
    found = list(_nodes(folder / f"half-{number}" / f"{tower}.onnx", "Softmax"))
    assert found == [[kind, kind]] * 2


def test_both_recipes_give_the_same_features(folder: Path) -> None:
    first, second = (ModelRegistry(folder, options=OPTIONS).load(f"half-{number}") for number in range(2))
    np.testing.assert_allclose(first.encode_pixels(PIXELS), second.encode_pixels(PIXELS), atol=2e-3)
    np.testing.assert_allclose(first.encode_texts(TEXTS), second.encode_texts(TEXTS), atol=2e-3)
    first.close()
    second.close()


@pytest.mark.usefixtures("tiny_architectures")
def test_other_first_places_make_the_export_more_careful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosines alone may hold while the nearest label is another one."""
    shares = iter([0.5, 1.0])
    monkeypatch.setattr("models.parity.top1_agreement", lambda *_: next(shares))
    folder = export_open_clip("tiny-vit", destination=tmp_path / "half", precision="fp16", threads=1)
    for tower in ("image", "text"):
        assert list(_nodes(folder / f"{tower}.onnx", "Softmax")) == [[TensorProto.FLOAT] * 2] * 2


@pytest.mark.usefixtures("tiny_architectures")
def test_other_first_places_by_every_recipe_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.parity.top1_agreement", lambda *_: 0.5)
    with pytest.raises(ExportError, match=r"the fp16 export is not .*: top-1 agreement 50\.00% is below"):
        export_open_clip("tiny-vit", destination=tmp_path / "half", precision="fp16", threads=1)
    assert not list(tmp_path.iterdir())

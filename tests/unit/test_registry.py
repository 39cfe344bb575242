"""The registry: only what matches its manifest, and does what it says, is ever served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models.errors import ManifestError, ModelError, RuntimeUnavailableError, UnknownModelError
from models.registry import ModelRegistry, describe
from models.runtimes import RuntimeOptions
from tests import toy_models
from tests.toy_models import write_manifest, write_toy_model

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_toy_model(tmp_path)
    return tmp_path


@pytest.fixture
def registry(folder: Path) -> ModelRegistry:
    return ModelRegistry(folder, options=RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1))


def test_a_loaded_model_encodes(registry: ModelRegistry) -> None:
    model = registry.load("toy")
    features = model.encode_pixels(PIXELS)
    assert features.shape == (3, toy_models.DIM)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    one, long = model.encode_texts(["cat", "a much longer text, which pads the short one"])
    np.testing.assert_allclose(model.encode_texts(["cat"])[0], one, atol=1e-6)
    assert one @ long < 0.99


def test_a_model_tells_what_it_is_and_what_runs_it(registry: ModelRegistry) -> None:
    model = registry.load("toy")
    told = describe(model.manifest) | model.running()
    assert (told["name"], told["loaded"], told["embedding_dim"]) == ("toy", False, toy_models.DIM)
    assert (told["runtime"], told["provider"]) == ("onnxruntime", "cpu")
    assert told["load_seconds"] > 0
    json.dumps(told)


def test_loading_twice_gives_the_same_model(registry: ModelRegistry) -> None:
    assert registry.load("toy") is registry.load("toy")


def test_threads_that_load_the_same_name_load_it_once(registry: ModelRegistry) -> None:
    start = threading.Barrier(4)
    loaded = []

    def load() -> None:
        start.wait()
        loaded.append(registry.load("toy"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len({id(model) for model in loaded}) == 1


def test_several_models_at_once_keep_to_themselves(folder: Path, registry: ModelRegistry) -> None:
    write_toy_model(folder, name="other", seed=7, dim=24)
    toy, other = registry.load("toy"), registry.load("other")
    assert toy.encode_pixels(PIXELS).shape == (3, toy_models.DIM)
    assert other.encode_pixels(PIXELS).shape == (3, 24)
    assert {model.name for model in registry.loaded()} == {"toy", "other"}


def test_unloading_takes_one_model_and_leaves_the_rest(folder: Path, registry: ModelRegistry) -> None:
    write_toy_model(folder, name="other")
    registry.load("toy")
    other = registry.load("other")
    registry.unload("toy").close()
    with pytest.raises(UnknownModelError, match="no model named 'toy' is loaded; loaded models: other"):
        registry.get("toy")
    with pytest.raises(UnknownModelError):
        registry.unload("toy")
    assert registry.get("other") is other
    assert registry.load("toy").encode_pixels(PIXELS).shape == (3, toy_models.DIM)


def test_a_model_that_arrives_later_is_found(folder: Path, registry: ModelRegistry) -> None:
    with pytest.raises(UnknownModelError, match=r"no model named 'late'; known models: .*toy"):
        registry.load("late")
    write_toy_model(folder, name="late")
    assert "late" in registry.names()
    assert registry.load("late").name == "late"


def test_folders_that_begin_with_a_dot_are_none(folder: Path, registry: ModelRegistry) -> None:
    (folder / "toy").rename(folder / ".toy")
    assert "toy" not in registry.names()
    assert ".toy" not in registry.names()


# Broken models


def _flip_a_byte(place: Path) -> None:
    data = bytearray((place / "image.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "image.onnx").write_bytes(data)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def _replace(name: str, data: bytes) -> Callable[[Path], None]:
    """Another file, and a manifest that matches it."""

    def damage(place: Path) -> None:
        (place / name).write_bytes(data)
        write_manifest(place, name="toy")

    return damage


def _swap_towers(place: Path) -> None:
    image, text = place / "image.onnx", place / "text.onnx"
    image_bytes = image.read_bytes()
    image.write_bytes(text.read_bytes())
    text.write_bytes(image_bytes)
    write_manifest(place, name="toy")


def _edit_graph(edit: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        model = onnx.load(place / "text.onnx")
        edit(model)
        onnx.save(model, place / "text.onnx")
        write_manifest(place, name="toy")

    return damage


def _second_output_first(model: onnx.ModelProto) -> None:
    """The raw projection before the features, as an exporter might give them."""
    raw = next(node.input[0] for node in model.graph.node if "features" in node.output)
    features = model.graph.output.pop()
    model.graph.output.append(onnx.helper.make_tensor_value_info(raw, onnx.TensorProto.FLOAT, None))
    model.graph.output.append(features)


def _not_normalised(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if "features" in node.output)
    node.op_type = "Mul"


def _change_manifest(**changes: object) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        path = place / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(_flip_a_byte, r"toy: image.onnx does not match its SHA-256", id="flipped byte"),
        pytest.param(_remove("text.onnx"), r"toy: text.onnx is missing", id="missing graph"),
        pytest.param(_remove("tokenizer.json"), r"toy: tokenizer.json is missing", id="missing tokenizer"),
        pytest.param(_replace("image.onnx", b""), r"image.onnx is no ONNX graph", id="empty graph"),
        pytest.param(_replace("image.onnx", b"\x08\x01junk" * 99), r"is no ONNX graph", id="junk graph"),
        pytest.param(_replace("tokenizer.json", b"{}"), r"tokenizer.json is no", id="junk tokenizer"),
        pytest.param(_swap_towers, r"toy: image.onnx cannot run", id="swapped towers"),
        pytest.param(_edit_graph(_second_output_first), r"one output 'features'", id="another output first"),
        pytest.param(_edit_graph(_not_normalised), r"text.onnx.*not L2-normalised", id="not normalised"),
        pytest.param(_change_manifest(embedding_dim=7), r"gives .*48.*, not .*7", id="wrong dimension"),
        pytest.param(_change_manifest(name="cat"), r"name 'cat'", id="another name"),
        pytest.param(_change_manifest(opset="x"), r"model.json: opset", id="wrong type"),
        pytest.param(_change_manifest(surprise=1), r"model.json: surprise", id="unknown field"),
        pytest.param(_change_manifest(schema_version=2), r"model.json: schema_version", id="another version"),
        pytest.param(lambda place: (place / "model.json").write_text("{"), r"model.json", id="no JSON"),
    ],
)
def test_a_broken_model_is_refused_and_others_are_served(
    folder: Path, registry: ModelRegistry, damage: Callable[[Path], None], says: str
) -> None:
    write_toy_model(folder, name="sound")
    sound = registry.load("sound")
    damage(folder / "toy")
    with pytest.raises(ManifestError, match=says):
        registry.load("toy")
    with pytest.raises(UnknownModelError):
        registry.get("toy")
    assert registry.load("sound") is sound
    assert sound.encode_pixels(PIXELS).shape == (3, toy_models.DIM)


def test_a_mended_model_can_be_loaded(folder: Path, registry: ModelRegistry) -> None:
    whole = (folder / "toy" / "image.onnx").read_bytes()
    _flip_a_byte(folder / "toy")
    with pytest.raises(ManifestError):
        registry.load("toy")
    (folder / "toy" / "image.onnx").write_bytes(whole)
    assert registry.load("toy").name == "toy"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="ONNX Runtime is the GPU build here",
)
def test_a_provider_that_cannot_run_here_is_refused_with_its_remedy(folder: Path) -> None:
    registry = ModelRegistry(folder, options=RuntimeOptions(runtime="onnxruntime", provider="cuda"))
    with pytest.raises(RuntimeUnavailableError, match=r"'cuda'.*pip install 'clipserve\[gpu\]'"):
        registry.load("toy")


def test_every_refusal_is_fit_for_users(folder: Path, registry: ModelRegistry) -> None:
    _flip_a_byte(folder / "toy")
    with pytest.raises(ModelError) as refusal:
        registry.load("toy")
    assert str(folder) not in str(refusal.value)
    assert "\n" not in str(refusal.value)

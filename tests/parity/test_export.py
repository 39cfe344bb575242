"""Exports of small models of every kind: what lands in the folder, and that it gives what open_clip gives."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, ModelManifest
from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions

torch = pytest.importorskip("torch", reason="needs the extra 'export'")
onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")

from models import towers  # noqa: E402
from models.architectures import OpenClipModel, Weights, load  # noqa: E402
from models.export import export_model, export_open_clip  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_architectures")

PHOTOS = Path(__file__).parents[3] / "shared" / "photos"
TEXTS = ["a cat", "a photo of a small red dog", "snow-covered mountains & a pink sky", "!" * 300]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def vit(folder: Path, tiny_architectures: None) -> Path:
    return export_open_clip("tiny-vit", destination=folder / "vit", threads=1)


@pytest.fixture
def registry(folder: Path) -> Iterator[ModelRegistry]:
    registry = ModelRegistry(
        folder, options=RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1), exif=False
    )
    yield registry
    registry.close()


def pictures() -> list[bytes]:
    random = np.random.default_rng(5)
    found = []
    for height, width in ((90, 120), (200, 64), (33, 31)):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def open_clip_features(loaded: OpenClipModel, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Through open_clip's public functions alone."""
    import open_clip

    size = loaded.image.size
    transform = open_clip.image_transform(
        size, is_train=False, mean=loaded.image.mean, std=loaded.image.std,
        resize_mode=loaded.image.resize, interpolation=loaded.image.interpolation,
    )  # fmt: skip
    batch = torch.stack([transform(Image.open(io.BytesIO(image))) for image in images])
    with torch.inference_mode():
        image_features = loaded.model.encode_image(batch)
        text_features = loaded.model.encode_text(loaded.tokenizer(TEXTS))
        normalise = torch.nn.functional.normalize
        return normalise(image_features, dim=-1).numpy(), normalise(text_features, dim=-1).numpy()


def assert_serves_what_open_clip_gives(served: LoadedModel, loaded: OpenClipModel, tolerance: float) -> None:
    image_features, text_features = open_clip_features(loaded, pictures())
    np.testing.assert_allclose(served.encode_images(pictures()), image_features, atol=tolerance)
    np.testing.assert_allclose(served.encode_texts(TEXTS), text_features, atol=tolerance)


KINDS = {
    # architecture: (activation function, scoring, dynamic length)
    "tiny-resnet": ("quickgelu", "softmax", True),
    "tiny-siglip": ("gelu", "sigmoid", False),
    "tiny-mobileclip": ("gelu", "softmax", False),
    "tiny-roberta": ("gelu", "softmax", True),
    "tiny-coca": ("gelu", "softmax", False),
}


@pytest.mark.parametrize("architecture", KINDS)
def test_every_kind_of_architecture_is_served_as_open_clip_runs_it(
    architecture: str, folder: Path, registry: ModelRegistry
) -> None:
    export_open_clip(architecture, destination=folder / architecture, threads=1, seed=3)
    served = registry.load(architecture)
    assert_serves_what_open_clip_gives(served, load(architecture, Weights(seed=3)), 2e-5)
    manifest = served.manifest
    assert (
        manifest.network_activation,
        manifest.scoring.activation,
        manifest.text.dynamic_length,
    ) == KINDS[architecture]


def test_a_vit_is_served_as_open_clip_runs_it(vit: Path, registry: ModelRegistry) -> None:
    assert_serves_what_open_clip_gives(registry.load("vit"), load("tiny-vit", Weights()), 2e-5)


def test_photographs_give_the_features_that_open_clip_gives(vit: Path, registry: ModelRegistry) -> None:
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.webp"))]
    if not photos:
        pytest.skip("the photographs in ../shared/photos are not here")
    wanted, _ = open_clip_features(load("tiny-vit", Weights()), photos)
    found = registry.load("vit").encode_images(photos)
    assert (wanted * found).sum(axis=1).min() >= 0.99999


def test_the_manifest_tells_what_was_exported(vit: Path) -> None:
    manifest = ModelManifest.read(vit)
    manifest.verify_files(vit)
    assert manifest.architecture == "tiny-vit"
    assert manifest.pretrained is None
    assert manifest.description.startswith("RANDOM WEIGHTS (seed 0)")
    assert manifest.source == "random weights, seed 0"
    assert manifest.embedding_dim == 48
    assert manifest.network_activation == "gelu"
    assert manifest.scoring.logit_scale == pytest.approx(1 / 0.07)
    model = load("tiny-vit", Weights()).model
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.opset == onnx.load(vit / IMAGE_GRAPH).opset_import[0].version


def test_the_manifest_carries_the_parity_report(vit: Path) -> None:
    report = ModelManifest.read(vit).parity
    assert report is not None
    assert report.batches == (1, 2, 7)
    assert report.image.items == 36
    assert report.text.items == 56  # 28 texts, cut and padded
    assert min(report.text_lengths) < 10 < 77 == max(report.text_lengths)
    assert min(report.image.min_cosine, report.text.min_cosine) >= 0.99999
    assert report.top1_agreement == 1
    assert report.reference.startswith("open_clip 3") or report.reference.startswith("open_clip ")
    assert set(report.versions) >= {"torch", "open_clip_torch", "onnx", "onnxruntime"}


def test_the_folder_holds_what_the_manifest_lists_and_nothing_else(vit: Path) -> None:
    manifest = ModelManifest.read(vit)
    assert {path.name for path in vit.iterdir()} == {*manifest.files, "model.json"}
    assert [path.name for path in vit.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("graph", "name", "shape"), [
    (IMAGE_GRAPH, "pixels", ["batch", 32, 32, 3]),
    (TEXT_GRAPH, "tokens", ["batch", "length"]),
])  # fmt: skip
def test_graphs_have_the_shapes_of_the_contract(
    vit: Path, graph: str, name: str, shape: list[object]
) -> None:
    model = onnx.load(vit / graph)
    [source], [target] = model.graph.input, model.graph.output
    found = [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim]
    assert (source.name, found) == (name, shape)
    assert target.name == "features"
    assert [dim.dim_param or dim.dim_value for dim in target.type.tensor_type.shape.dim] == ["batch", 48]


def test_graphs_carry_no_trace_of_the_machine_they_were_made_on(vit: Path) -> None:
    for graph in (IMAGE_GRAPH, TEXT_GRAPH):
        content = (vit / graph).read_bytes()
        assert b"site-packages" not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_weights_can_lie_beside_the_graphs_and_own_pictures_join_the_check_set(
    vit: Path, folder: Path, registry: ModelRegistry, tmp_path: Path
) -> None:
    for number, picture in enumerate(pictures()):
        (tmp_path / f"{number}.png").write_bytes(picture)
    (tmp_path / "notes.txt").write_text("not a picture")
    stages: list[tuple[str, float]] = []
    loaded = load("tiny-vit", Weights())
    export_model(
        loaded.model, loaded.tokenizer, name="beside", architecture="tiny-vit", destination=folder / "beside",
        image=loaded.image, threads=1, external_data_bytes=100_000, check_images=tmp_path,
        progress=lambda stage, share: stages.append((stage, share)),
    )  # fmt: skip
    beside, inside = registry.load("beside"), registry.load("vit")
    assert {"image.onnx.data", "text.onnx.data"} <= set(beside.manifest.files)
    assert (folder / "beside" / IMAGE_GRAPH).stat().st_size < (vit / IMAGE_GRAPH).stat().st_size / 2
    np.testing.assert_array_equal(beside.encode_texts(TEXTS), inside.encode_texts(TEXTS))
    assert beside.manifest.parity is not None
    assert beside.manifest.parity.image.items == 36 + len(pictures())
    shares = [share for _, share in stages]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.6), ("int8", 0.45)])
def test_smaller_precisions_are_smaller_and_state_their_loss(
    precision: str, share: float, vit: Path, folder: Path, registry: ModelRegistry
) -> None:
    export_open_clip("tiny-vit", destination=folder / precision, precision=precision, threads=1)
    served = registry.load(precision)
    assert served.manifest.precision == precision
    report = served.manifest.parity
    assert report is not None
    least = {"fp16": 0.999, "int8": 0.97}[precision]
    assert least <= min(report.image.min_cosine, report.text.min_cosine) < 1
    for graph in (IMAGE_GRAPH, TEXT_GRAPH):
        assert (folder / precision / graph).stat().st_size < share * (vit / graph).stat().st_size
    wanted, _ = open_clip_features(load("tiny-vit", Weights()), pictures())
    assert (wanted * served.encode_images(pictures())).sum(axis=1).min() >= least


def test_parallel_branches_are_fused_before_the_export() -> None:
    loaded = load("tiny-mobileclip", Weights())
    visual = loaded.model.visual
    tower = towers.ImageTower(visual, loaded.image)
    count = lambda module: sum(isinstance(each, torch.nn.Conv2d) for each in module.modules())  # noqa: E731
    assert count(tower.visual) < count(visual)

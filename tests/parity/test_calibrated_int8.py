"""int8 with calibrated activations: within its gate, in every runtime, and served like any other model."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("nncf", reason="needs the extra 'export'")

from models.calibration import Calibration, quantise
from models.errors import ExportError
from models.export import export_open_clip
from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, ModelManifest, file_entry
from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from models.shapes.pairs import PAIRS
from models.shapes.scenes import render, sample_scene
from models.tokenizer import Tokenizer
from service.cli import app

SHAPES = Path(__file__).parents[2] / "models" / "shapes" / "files"
ORT = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=2)


def png(seed: int, colour: str, shape: str) -> bytes:
    stream = BytesIO()
    render(sample_scene(seed, colour=colour, shape=shape), 96).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [png(8_700_000_000 + number, *pair) for number, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Other pictures of a third of the classes."""
    folder = tmp_path_factory.mktemp("calibration")
    for number, pair in enumerate(PAIRS[::3]):
        (folder / f"{number}.png").write_bytes(png(8_800_000_000 + number, *pair))
    return Calibration.read(folder)


@pytest.fixture(scope="module")
def models(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the embedded one in int8 in it."""
    folder = tmp_path_factory.mktemp("models")
    manifest = ModelManifest.read(Path(copytree(SHAPES, folder / "shapes-int8")))
    small, tokenizer = folder / "shapes-int8", Tokenizer(SHAPES / "tokenizer.json", manifest.text)
    quantise(small / IMAGE_GRAPH, samples=calibration.pixels(manifest.image), float_patches=True)
    quantise(small / TEXT_GRAPH, samples=calibration.tokens(tokenizer, manifest.text.context_length))
    files = {name: file_entry(small / name) for name in manifest.files}
    manifest.model_copy(update={"name": "shapes-int8", "precision": "int8", "files": files}).write(small)
    return folder


def features(model: LoadedModel, pictures: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Of the pictures, and of a prompt for each class."""
    return model.encode_images(pictures), model.encode_texts([f"a {one} {other}" for one, other in PAIRS])


@pytest.fixture(scope="module")
def exact(pictures: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return features(ModelRegistry(options=ORT).load("shapes"), pictures)


@pytest.fixture(params=["onnxruntime", "openvino"])
def rounded(request: pytest.FixtureRequest, models: Path) -> Iterator[LoadedModel]:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="needs the extra 'cpu'")
    registry = ModelRegistry(
        models, options=RuntimeOptions(runtime=request.param, precision="fp32", threads=2)
    )
    yield registry.load("shapes-int8")
    registry.close()


def test_the_embedded_model_keeps_its_answers(
    rounded: LoadedModel, exact: tuple[np.ndarray, np.ndarray], pictures: list[bytes]
) -> None:
    found = features(rounded, pictures)
    for one, other in zip(exact, found, strict=True):
        assert 0.97 <= (one * other).sum(axis=1).min() < 0.99999
    wanted, given = ((images @ texts.T).argmax(axis=1) for images, texts in (exact, found))
    assert (wanted == given).mean() >= 0.97


def test_a_picture_in_company_gives_what_it_gives_alone(rounded: LoadedModel, pictures: list[bytes]) -> None:
    """Which int8 with ranges taken from each batch would not."""
    alone = np.concatenate([rounded.encode_images([picture]) for picture in pictures[:5]])
    assert (alone * rounded.encode_images(pictures[:5])).sum(axis=1).min() >= 0.99999


def test_auto_holds_every_way_to_run_it_to_the_int8_file(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra 'cpu'")
    registry = ModelRegistry(models, options=RuntimeOptions(threads=2, cache_dir=tmp_path))
    assert registry.load("shapes-int8").image.runtime in {"onnxruntime", "openvino"}
    registry.close()
    (verdicts,) = tmp_path.rglob("verdicts-*.json")
    assert verdicts.read_text().count('"least": 0.999,') + verdicts.read_text().count('"least": 0.999\n') >= 2


@pytest.mark.usefixtures("tiny_architectures")
class TestExport:
    """Through ``clipserve export``."""

    @staticmethod
    def run(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("CLIPSERVE_HOME", str(home))
        result = CliRunner().invoke(app, ["export", "tiny-vit", "--name", "small", *arguments])
        return result.exit_code, result.output + (str(result.exception) if result.exception else "")

    @pytest.mark.e2e
    def test_writes_a_model_that_says_what_it_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[bytes]
    ) -> None:
        folder, texts = tmp_path / "pictures", tmp_path / "texts.txt"
        folder.mkdir()
        for number, picture in enumerate(pictures[:12]):
            (folder / f"{number}.png").write_bytes(picture)
        texts.write_text("a red circle\n\na blue star\na photo of a dog\n")
        code, output = self.run(
            tmp_path, monkeypatch, "--precision", "int8",
            "--calibration-images", str(folder), "--calibration-texts", str(texts),
        )  # fmt: skip
        assert code == 0, output
        assert "int8 weights and activations" in output
        model = ModelRegistry(tmp_path / "models", options=ORT).load("small")
        report = model.manifest.parity
        assert report is not None
        assert 0.97 <= min(report.image.min_cosine, report.text.min_cosine) < 0.99999
        assert report.top1_agreement >= 0.97
        assert "nncf" in report.versions

    @pytest.mark.e2e
    def test_external_weights_are_rounded_too(self, tmp_path: Path, calibration: Calibration) -> None:
        from models.architectures import Weights, load
        from models.export import export_model

        loaded = load("tiny-vit", Weights())
        for name, limit in (("inside", 2**30), ("beside", 100_000)):
            export_model(
                loaded.model, loaded.tokenizer, name=name, architecture="tiny-vit", image=loaded.image,
                destination=tmp_path / name, precision="int8", calibration=calibration, threads=1,
                external_data_bytes=limit,
            )  # fmt: skip
        assert {"image.onnx.data", "text.onnx.data"} <= set(ModelManifest.read(tmp_path / "beside").files)
        registry = ModelRegistry(tmp_path, options=ORT)
        inside, beside = (registry.load(name).encode_texts(["a red circle"]) for name in ("inside", "beside"))
        np.testing.assert_allclose(inside, beside, atol=1e-6)

    @pytest.mark.e2e
    def test_a_missed_gate_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Calibration
    ) -> None:
        from models import parity

        monkeypatch.setitem(parity.GATES, "int8", parity.Gate(cosine=0.999999, top1=1.0))
        with pytest.raises(ExportError, match=r"int8 export is not .* cosine 0\.\d+ is below 0\.999999"):
            export_open_clip(
                "tiny-vit", destination=tmp_path / "x", precision="int8", calibration=calibration
            )
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (
                ("--precision", "fp16", "--calibration-images", "{full}"),
                "are for the precision int8, not for fp16",
            ),
            (
                ("--precision", "int8", "--calibration-images", "{none}"),
                "calibration_images: .* is no folder",
            ),
            (
                ("--precision", "int8", "--calibration-images", "{empty}"),
                "calibration_images: .* holds no picture",
            ),
            (
                ("--precision", "int8", "--calibration-images", "{broken}"),
                "calibration_images: the picture",
            ),
            (("--precision", "int8", "--calibration-texts", "{none}"), "needs --calibration-images"),
            (
                ("--precision", "int8", "--calibration-images", "{full}", "--calibration-texts", "{none}"),
                "calibration_texts: .* cannot be read",
            ),
        ],
    )
    def test_what_cannot_calibrate_is_refused(
        self, arguments: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import re

        places = {name: tmp_path / name for name in ("full", "empty", "broken", "none")}
        for name in ("full", "empty", "broken"):
            places[name].mkdir()
        (places["broken"] / "one.png").write_bytes(png(1, *PAIRS[0])[:200])
        (places["full"] / "one.png").write_bytes(png(1, *PAIRS[0]))
        code, output = self.run(tmp_path, monkeypatch, *(one.format(**places) for one in arguments))
        assert code != 0
        assert re.search(complaint, re.sub(r"\s*[│\n]\s*", " ", output)), output
        assert not (tmp_path / "models" / "small").exists()

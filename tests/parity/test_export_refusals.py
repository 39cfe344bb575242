"""What an export must refuse, and that a refusal leaves the disk as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import ExportError
from models.manifest import ModelManifest

torch = pytest.importorskip("torch", reason="needs the extra 'export'")

from models import export_job, towers  # noqa: E402
from models.architectures import Weights, load  # noqa: E402
from models.export import export_model, export_open_clip  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_architectures")


def small_export(destination: Path, change: Any = None, **options: Any) -> Path:
    loaded = load("tiny-vit", Weights())
    if change:
        change(loaded.model)
    return export_model(
        loaded.model, loaded.tokenizer, name=destination.name, architecture="tiny-vit",
        destination=destination, image=loaded.image, threads=1, **options,
    )  # fmt: skip


class RedAndBlueSwapped(towers.ImageTower):
    def forward(self, pixels: Any) -> Any:
        return super().forward(pixels.flip(-1))


def test_a_graph_that_differs_is_refused_with_the_figures_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("the old one")
    monkeypatch.setattr(towers, "ImageTower", RedAndBlueSwapped)
    with pytest.raises(ExportError, match=r"smallest image cosine 0\.\d+ is below 0\.99999 \(largest diff"):
        small_export(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model" / "model.json").read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_non_finite_features_are_refused(tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        model.ln_final.bias.data[0] = float("nan")

    with pytest.raises(ExportError, match="text graph gives non-finite features"):
        small_export(tmp_path / "model", spoil)
    assert list(tmp_path.iterdir()) == []


def test_a_text_tower_that_sees_its_padding_gets_a_fixed_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structure alone is not believed: the free length is tried, found to differ, and taken back."""
    monkeypatch.setattr(towers, "may_vary_length", lambda model: True)

    def see_everything(model: Any) -> None:
        model.attn_mask = None

    stages: list[str] = []
    folder = small_export(tmp_path / "model", see_everything, progress=lambda stage, _: stages.append(stage))
    assert ModelManifest.read(folder).text.dynamic_length is False
    assert any("length cannot vary" in stage for stage in stages)


def test_a_model_that_open_clip_cannot_run_is_refused(tmp_path: Path) -> None:
    def shorten(model: Any) -> None:
        model.positional_embedding = torch.nn.Parameter(model.positional_embedding[:-1].detach())

    with pytest.raises(ExportError, match="open_clip itself cannot run this model: RuntimeError"):
        small_export(tmp_path / "model", shorten)


def test_a_tower_that_cannot_be_traced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untraceable(towers.NativeTextTower):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens if int(tokens.sum()) > 3 else tokens + 1)

    monkeypatch.setattr(towers, "NativeTextTower", Untraceable)
    with pytest.raises(ExportError, match="the text tower cannot be exported: "):
        small_export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_other_preprocessing_than_open_clips_is_refused(tmp_path: Path) -> None:
    loaded = load("tiny-vit", Weights())
    wrong = loaded.image.model_copy(update={"interpolation": "bilinear"})
    with pytest.raises(ExportError, match=r"picture \d+ of the check set is preprocessed otherwise"):
        export_model(
            loaded.model, loaded.tokenizer, name="model", architecture="tiny-vit",
            destination=tmp_path / "model", image=wrong, threads=1,
        )  # fmt: skip


def test_other_token_ids_than_open_clips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export_job._write_tokenizer

    def careless(tokenizer: Any, path: Path) -> Any:
        return write(tokenizer, path).model_copy(update={"cleaning": "whitespace"})

    monkeypatch.setattr(export_job, "_write_tokenizer", careless)
    with pytest.raises(ExportError, match=r"tokenizer\.json gives other ids .* for 'A Photo Of Two CATS"):
        small_export(tmp_path / "model")


def test_a_folder_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ExportError, match=r"model exists; remove it, choose another name"):
        export_open_clip("no-such-architecture", destination=tmp_path / "model")


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "x" * 129])
def test_names_must_be_plain(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"name: .* must be 1 to 128"):
        export_open_clip("tiny-vit", destination=tmp_path / "model", name=name or " ")


def test_check_images_must_be_a_folder_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"check_images: .* is no folder"):
        small_export(tmp_path / "model", check_images=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"check_images: .* holds no picture"):
        small_export(tmp_path / "model", check_images=tmp_path / "empty")


REFUSED = {
    "unknown architecture": ("ViT-B-23", {}, "open_clip knows no 'ViT-B-23'; did you mean ViT-B-32"),
    "unknown tag": ("ViT-B-32", {"tag": "nonsense"}, "ViT-B-32 has no 'nonsense'; its tags: openai"),
    "tag needs QuickGELU": ("ViT-B-32", {"tag": "openai"}, "export ViT-B-32-quickgelu instead"),
    "tag needs GELU": ("ViT-B-32-quickgelu", {"tag": "laion2b_s34b_b79k"}, "export ViT-B-32 instead"),
    "two sources": ("ViT-B-32", {"tag": "openai", "checkpoint": Path("x")}, "exclude each other"),
    "no checkpoint": ("ViT-B-32", {"checkpoint": Path("nowhere.pt")}, "nowhere.pt is no file"),
    "hub brings its own": ("hf-hub:a/b", {"tag": "openai"}, "brings its own weights"),
    "folder is missing": ("local-dir:nowhere", {}, "open_clip cannot load nowhere: FileNotFoundError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_open_clip_cannot_load_is_refused_with_a_hint(case: str) -> None:
    architecture, weights, hint = REFUSED[case]
    with pytest.raises(ExportError) as refusal:
        load(architecture, Weights(**weights))
    assert hint in str(refusal.value)


def test_pictures_must_be_square(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    config = open_clip.get_model_config("tiny-vit")
    config["vision_cfg"] = {**config["vision_cfg"], "image_size": (32, 64)}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-wide", config)
    with pytest.raises(ExportError, match="pictures of 64×32; only square"):
        load("tiny-wide", Weights())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(load("tiny-resnet", Weights()).model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ExportError, match="open_clip cannot load tiny-vit: "):
        load("tiny-vit", Weights(checkpoint=tmp_path / "other.pt"))

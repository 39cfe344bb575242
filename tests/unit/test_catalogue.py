"""The catalogue names models that exist, with the figures of the architectures it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from models.catalogue import CatalogueEntry, available
from models.manifest import ModelName
from models.pull import default_name

EXPORTED = [entry for entry in available() if entry.route == "export"]
PULLED = [entry for entry in available() if entry.route == "pull"]


def test_names_are_unique_and_fit_for_a_manifest() -> None:
    names = [entry.name for entry in available()]
    assert len(set(names)) == len(names)
    for name in names:
        TypeAdapter(ModelName).validate_python(name)


def test_every_figure_has_a_source_and_no_source_stands_alone() -> None:
    for entry in available():
        assert (entry.imagenet_top1 is None) == (entry.source == ""), entry.name
        assert entry.imagenet_top1 is None or 50 < entry.imagenet_top1 < 90, entry.name


def test_commands_can_be_pasted() -> None:
    commands = {entry.name: entry.command for entry in available()}
    assert commands["vit-b-32"] == "clipserve export ViT-B-32-quickgelu --pretrained openai --name vit-b-32"
    assert commands["clip-vit-base-patch32"] == (
        "clipserve pull Xenova/clip-vit-base-patch32 --name clip-vit-base-patch32"
    )


@pytest.mark.parametrize("entry", PULLED, ids=lambda entry: entry.name)
def test_pulled_models_come_from_a_repository(entry: CatalogueEntry) -> None:
    owner, _, name = entry.pretrained.partition("/")
    assert owner
    assert default_name(entry.pretrained) == name


@pytest.mark.parametrize("entry", EXPORTED, ids=lambda entry: entry.name)
def test_exported_models_are_open_clips(entry: CatalogueEntry) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the catalogue is held against open_clip")
    assert (entry.architecture, entry.pretrained) in open_clip.list_pretrained()
    config = open_clip.get_model_config(entry.architecture)
    assert config["embed_dim"] == entry.embedding_dim
    size = config["vision_cfg"].get("image_size", 224)
    assert size == entry.image_size
    # Weights trained with QuickGELU give other features under GELU, and the tag says which they are; some
    # architectures have QuickGELU of their own, whatever the tag says.
    quick = open_clip.get_pretrained_cfg(entry.architecture, entry.pretrained).get("quick_gelu", False)
    assert config.get("quick_gelu", False) or not quick
    assert quick or not entry.architecture.endswith("-quickgelu")


@pytest.mark.parametrize(
    "name", ["rn50", "vit-b-32", "siglip2-b-16", "mobileclip2-s0", "convnext-base-w-laion2b", "eva02-b-16"]
)
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the catalogue is held against open_clip")
    torch = pytest.importorskip("torch")
    from open_clip.model import CLIP, CustomTextCLIP

    entry = next(entry for entry in available() if entry.name == name)
    config = open_clip.get_model_config(entry.architecture)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    with torch.device("meta"):  # shapes without memory
        model = kind(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters


def test_the_data_is_packaged_with_the_code() -> None:
    """An installed wheel finds it where the module looks."""
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"catalogue.json"' in pyproject

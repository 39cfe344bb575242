"""How a name of open_clip's becomes a model: weights, seeds, activation functions, preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'export'")

from models.architectures import OpenClipModel, Weights, load  # noqa: E402
from models.check_set import CheckSet  # noqa: E402
from models.parity import compare  # noqa: E402
from models.reference import Reference  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_architectures")


def state(loaded: OpenClipModel) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


def equal(one: OpenClipModel, other: OpenClipModel) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_random_weights_follow_from_the_seed_and_leave_torch_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (load("tiny-resnet", Weights(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert equal(first, again)
    assert not equal(first, other)
    assert first.remarks[0].startswith("RANDOM WEIGHTS (seed 1)")


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-resnet", "tiny-siglip"])
def test_no_random_parameter_is_left_without_effect(architecture: str) -> None:
    """A fresh model has branches times zero and norms times one, which would hide mistakes."""
    constant = [
        name
        for name, parameter in load(architecture, Weights()).model.named_parameters()
        if parameter.numel() > 1 and parameter.max() == parameter.min()
    ]
    assert constant == []


def test_names_may_be_written_as_in_the_paper() -> None:
    assert load("tiny/vit", Weights()).architecture == "tiny-vit"


@pytest.mark.parametrize("architecture", ["tiny-resnet", "tiny-siglip", "tiny-mobileclip"])
def test_random_models_tell_pictures_apart(architecture: str) -> None:
    loaded = load(architecture, Weights())
    pictures = CheckSet.build(size=loaded.image.size, context_length=8).pictures
    reference = Reference(loaded.model, loaded.image)
    features = reference.encode_images(reference.preprocess(pictures))
    likeness = compare("image", features, features).reference_similarity
    assert likeness is not None
    assert likeness < 0.9


def test_a_checkpoint_is_loaded_and_named(tmp_path: Path) -> None:
    original = load("tiny-vit", Weights(seed=4))
    torch.save(original.model.state_dict(), tmp_path / "fine-tuned.pt")
    loaded = load("tiny-vit", Weights(checkpoint=tmp_path / "fine-tuned.pt"))
    assert equal(loaded, original)
    assert loaded.source == "checkpoint fine-tuned.pt"
    assert "preprocessing is open_clip's default" in loaded.remarks[0]


def test_a_folder_brings_its_own_weights_and_preprocessing(tmp_path: Path) -> None:
    import open_clip

    original = load("tiny-vit", Weights(seed=5))
    folder = tmp_path / "my-model"
    folder.mkdir()
    preprocessing = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    config = {"model_cfg": open_clip.get_model_config("tiny-vit"), "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(original.model.state_dict(), folder / "open_clip_pytorch_model.bin")
    loaded = load(f"local-dir:{folder}", Weights())
    assert equal(loaded, original)
    assert (loaded.image.resize, loaded.image.interpolation) == ("squash", "bilinear")
    assert loaded.image.mean == (0.5, 0.5, 0.5)
    assert (loaded.architecture, loaded.source) == ("my-model", "folder my-model")


def test_weights_without_a_tag_take_the_preprocessing_that_all_tags_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SigLIP checkpoint with CLIP's mean and cropping would be wrong and look right."""
    from open_clip.pretrained import _PRETRAINED

    monkeypatch.setitem(_PRETRAINED, "tiny-vit", _PRETRAINED["ViT-B-16-SigLIP"])
    image = load("tiny-vit", Weights()).image
    assert (image.resize, image.mean, image.std) == ("squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    monkeypatch.setitem(_PRETRAINED, "tiny-vit", _PRETRAINED["ViT-L-14"])  # these disagree on the mean
    assert load("tiny-vit", Weights()).image.mean[0] == pytest.approx(0.48145466)

"""Pulling what the real exporters write: towers of transformers and open_clip, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the originals are exported with the extra 'export'")
pytest.importorskip("transformers", reason="the originals are exported with the extra 'export'")
pytest.importorskip("open_clip", reason="the originals are exported with the extra 'export'")
import open_clip
import torch
import transformers

from models.manifest import ModelManifest, Precision
from models.pull import pull
from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions
from models.verify import verify
from tests import tiny_onnx
from tests.hub import Hub, point_at, serving
from tests.tiny_onnx import CONTEXT, DIM, END_ID, SIZE, WORDS

# torch calls its older exporter deprecated; most of what lies on hubs was written by it.
pytestmark = pytest.mark.filterwarnings("ignore")

EXACT = RuntimeOptions(runtime="onnxruntime", precision="fp32")  # a faster one may compute in bfloat16
REPO = "tiny/exported"
LOG_SCALE, BIAS = 4.2, -12.9
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = LAYERS | {"vocab_size": len(WORDS), "max_position_embeddings": CONTEXT, "pad_token_id": 0}
VISION = LAYERS | {"image_size": SIZE, "patch_size": 8}
SPECIAL = {"bos_token_id": 1, "eos_token_id": END_ID}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as running:
        point_at(running, tmp_path / "cache", monkeypatch)
        yield running


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spread_out(model: Any) -> Any:
    """Random weights that give different pictures and texts different features.

    Not larger: attention that is nearly all or nothing turns the last bit of a pixel into another feature.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    model.logit_scale.data.fill_(LOG_SCALE)
    return model.eval()


def clip() -> Any:
    text, vision = TEXT | SPECIAL, VISION | {"projection_dim": DIM}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    return spread_out(transformers.CLIPModel(config))


def siglip() -> Any:
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=TEXT | SPECIAL, vision_config=VISION)
    )
    model.logit_bias.data.fill_(BIAS)
    return spread_out(model)


class Call(torch.nn.Module):
    """What an exporter traces: a function of a model."""

    def __init__(self, model: Any, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.model, *inputs)


def combined(model: Any, path: Path, *, masked: bool) -> Path:
    """One graph as Optimum declares it: batches and length free."""

    def scores(inner: Any, ids: Any, pixels: Any, mask: Any = None) -> Any:
        found = inner(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        return found.logits_per_image, found.text_embeds, found.image_embeds

    names = ["input_ids", "pixel_values", *(["attention_mask"] if masked else [])]
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0]]) if masked else torch.ones(2, CONTEXT).long()
    arguments = (ids, torch.randn(2, 3, SIZE, SIZE), *([(ids > 0).long()] if masked else []))
    tokens = {0: "text_batch_size", 1: "sequence_length"}
    pictures = {0: "image_batch_size", 2: "height", 3: "width"}
    torch.onnx.export(
        Call(model, scores).eval(),
        arguments,
        path,
        input_names=names,
        output_names=["logits_per_image", "text_embeds", "image_embeds"],
        dynamic_axes={name: pictures if name == "pixel_values" else tokens for name in names},
        opset_version=14,
        dynamo=False,
    )
    return path


def served(destination: Path, pixels: Any, texts: list[str]) -> tuple[Any, Any]:
    model = ModelRegistry(destination.parent, options=EXACT).load(destination.name)
    features = model.encode_pixels(list(pixels)), model.encode_texts(texts)
    model.close()
    return features


def unit(rows: Any) -> Any:
    return torch.nn.functional.normalize(rows.detach().float(), dim=-1).numpy()


def ids_of(*texts: str) -> Any:
    rows = [[1, *(WORDS.index(word) for word in text.split()), END_ID] for text in texts]
    return torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])


PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
TEXTS = ["a red dog", "the large blue house over the river", "cat"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_models_give_their_torch_features_and_scores(
    hub: Hub, tmp_path: Path, kind: str
) -> None:
    model = clip() if kind == "clip" else siglip()
    graph = combined(model, tmp_path / "model.onnx", masked=kind == "clip")
    files = tiny_onnx.transformers_combined(kind)
    hub.repositories[REPO] = files | {"onnx/model.onnx": graph.read_bytes()}

    destination = pull(REPO, destination=tmp_path / "models" / kind)

    manifest = ModelManifest.read(destination)
    assert manifest.scoring.logit_scale == pytest.approx(np.exp(LOG_SCALE), rel=1e-5)
    assert manifest.scoring.logit_bias == pytest.approx(0 if kind == "clip" else BIAS, abs=1e-4)
    assert manifest.text.dynamic_length is (kind == "clip")
    assert verify(destination).passed
    mean, std = (np.array(values) for values in (manifest.image.mean, manifest.image.std))
    pictures = torch.tensor((PIXELS / 255 - mean) / std).permute(0, 3, 1, 2).float()
    ids = ids_of(*TEXTS)
    mask = {"attention_mask": (ids > 0).long()} if kind == "clip" else {}
    with torch.no_grad():
        wanted = model(input_ids=ids, pixel_values=pictures, **mask)
    images, texts = served(destination, PIXELS, TEXTS)
    np.testing.assert_allclose(images, unit(wanted.image_embeds), atol=2e-6)
    np.testing.assert_allclose(texts, unit(wanted.text_embeds), atol=2e-6)


def test_open_clip_models_as_immich_exports_them(hub: Hub, tmp_path: Path) -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    vision = {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": len(WORDS), "width": 64, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=DIM, vision_cfg=vision, text_cfg=text)
    # open_clip pools at the largest id of a text, so the end token must be that.
    remapped = torch.arange(len(WORDS))
    remapped[[END_ID, len(WORDS) - 1]] = remapped[[len(WORDS) - 1, END_ID]]
    spread_out(model)

    def encode_image(inner: Any, pixels: Any) -> Any:
        return inner.encode_image(pixels, normalize=True)

    def encode_text(inner: Any, ids: Any) -> Any:
        return inner.encode_text(remapped[ids.long()], normalize=True)

    files = tiny_onnx.immich()
    for path, name, function, example in (
        ("visual/model.onnx", "image", encode_image, torch.randn(1, 3, SIZE, SIZE)),
        ("textual/model.onnx", "text", encode_text, torch.ones(1, CONTEXT, dtype=torch.int32)),
    ):
        local = tmp_path / f"{name}.onnx"
        torch.onnx.export(
            Call(model, function).eval(),
            (example,),
            local,
            input_names=[name],
            output_names=["embedding"],
            opset_version=17,
            dynamo=False,
        )
        files[path] = local.read_bytes()
    hub.repositories[REPO] = files

    destination = pull(REPO, destination=tmp_path / "models" / "immich")

    assert verify(destination).passed
    assert "item by item" in ModelManifest.read(destination).description
    mean, std = (np.array(values) for values in (tiny_onnx.MEAN, tiny_onnx.STD))
    pictures = torch.tensor((PIXELS / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        wanted = encode_image(model, pictures), encode_text(model, ids_of(*TEXTS))
    images, texts = served(destination, PIXELS, TEXTS)
    np.testing.assert_allclose(images, unit(wanted[0]), atol=5e-6)
    np.testing.assert_allclose(texts, unit(wanted[1]), atol=5e-6)


@pytest.mark.parametrize(("precision", "suffix"), [("fp16", "_fp16"), ("int8", "_quantized")])
def test_half_precision_and_quantised_graphs(
    hub: Hub, tmp_path: Path, precision: Precision, suffix: str
) -> None:
    """They are compared with themselves: what they lost against float32, their makers lost."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph, made = combined(clip(), tmp_path / "model.onnx", masked=True), tmp_path / "made.onnx"
    if precision == "fp16":
        onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=False), made)
    else:
        quantize_dynamic(graph, made)
    files = tiny_onnx.transformers_combined() | {f"onnx/model{suffix}.onnx": made.read_bytes()}
    hub.repositories[REPO] = files

    destination = pull(REPO, precision=precision, destination=tmp_path / "models" / precision)

    manifest = ModelManifest.read(destination)
    assert manifest.precision == precision
    assert manifest.parity is not None
    assert min(manifest.parity.image.min_cosine, manifest.parity.text.min_cosine) >= 0.99999
    assert manifest.scoring.logit_scale == pytest.approx(np.exp(LOG_SCALE), rel=5e-3)
    assert verify(destination).passed, verify(destination)

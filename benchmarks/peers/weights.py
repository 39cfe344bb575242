"""The benchmark's seeded weights in the forms that peers read: a state dict, Hugging Face's, and plain ONNX.

Peers with ONNX Runtime get open_clip's own modules as torch exports them; that clipserve exports what has
less to do for the same features is its own merit.

Reference: ``transformers/models/clip/convert_clip_original_pytorch_to_hf.py`` for which tensor is which.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.subjects import MODEL, SEED
from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER

_START, _END, _CONTEXT = 49406, 49407, 77
_RENAMED = (
    (r"^visual\.", "vision_model."),
    (r"^(?=(transformer|ln_final|token_embedding|positional_embedding))", "text_model."),
    (r"transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
    (r"\.conv1\.", ".embeddings.patch_embedding."),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"^vision_model\.proj$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
)


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where each form of the same model lies."""

    onnx: Path
    torch: Path
    hugging_face: Path


def prepare_weights(models: Path, var: Path) -> ModelFiles:
    """Write what is not there yet beside the exported model in ``models``."""
    files = ModelFiles(
        onnx=var / "bench-peers" / f"{MODEL}-onnx",
        torch=var / "bench-peers" / f"{MODEL}.pt",
        hugging_face=var / "bench-peers" / f"{MODEL}-hf",
    )
    if not all(one.exists() for one in (files.torch, files.hugging_face / "config.json", files.onnx)):
        _write(files, models / MODEL / TOKENIZER)
    return files


def _write(files: ModelFiles, tokenizer: Path) -> None:
    import torch

    from models.architectures import Weights, load

    loaded = load(MODEL, Weights(seed=SEED))
    model = loaded.model.eval()
    files.hugging_face.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), files.torch)
    _hugging_face_model(model.state_dict()).save_pretrained(files.hugging_face)
    _write_processor(files, tokenizer)
    _write_onnx(loaded, files.onnx, tokenizer)


def _hugging_face_model(state: dict[str, Any]) -> Any:
    """A CLIPModel of ViT-B/32's shape with these weights."""
    from transformers import CLIPConfig, CLIPModel

    towers = {"hidden_act": "gelu", "projection_dim": 512}
    text = towers | {"bos_token_id": _START, "eos_token_id": _END}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=towers, projection_dim=512))
    model.load_state_dict(dict(_renamed(state)), strict=True)
    return model


def _renamed(state: dict[str, Any]) -> Any:
    for name, value in state.items():
        target = name
        for pattern, replacement in _RENAMED:
            target = re.sub(pattern, replacement, target)
        if ".in_proj_" in target:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                yield target.replace("in_proj_", f"{part}_proj."), piece
        elif target in {"visual_projection.weight", "text_projection.weight"}:
            yield target, value.T.contiguous()
        else:
            yield target, value


def _write_onnx(loaded: Any, folder: Path, tokenizer: Path) -> None:
    """Graphs of ``encode_image`` and ``encode_text``, for pixels uint8 and tokens int64 (N, 77)."""
    import torch
    from torch.nn.functional import normalize

    from models.towers import write_graph

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loaded.image.mean, loaded.image.std))

    class Image(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = loaded.model.get_submodule("visual")

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return normalize(self.visual((pixels.permute(0, 3, 1, 2) / 255 - mean) / std), dim=-1)

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model: Any = loaded.model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model.encode_text(tokens, normalize=True)
            return features

    folder.mkdir(parents=True, exist_ok=True)
    size = loaded.image.size
    write_graph(
        Image(), torch.zeros(2, size, size, 3, dtype=torch.uint8), folder / IMAGE_GRAPH, input_name="pixels"
    )
    write_graph(Text(), torch.zeros(2, _CONTEXT, dtype=torch.int64), folder / TEXT_GRAPH, input_name="tokens")
    shutil.copy(tokenizer, folder / TOKENIZER)


def _write_processor(files: ModelFiles, tokenizer: Path) -> None:
    """Tokenizer and picture settings, for a CLIPProcessor."""
    import transformers

    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    start, end = (_token(tokenizer, number) for number in (_START, _END))
    tokenizer_class(
        tokenizer_file=str(tokenizer),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=77,
    ).save_pretrained(files.hugging_face)
    transformers.CLIPImageProcessor().save_pretrained(files.hugging_face)
    settings = files.hugging_face / "tokenizer_config.json"
    named = json.loads(settings.read_text()) | {"tokenizer_class": "CLIPTokenizer"}
    settings.write_text(json.dumps(named))
    pictures = files.hugging_face / "preprocessor_config.json"
    if pictures.exists():
        named = json.loads(pictures.read_text()) | {"processor_class": "CLIPProcessor"}
        pictures.write_text(json.dumps(named))


def _token(tokenizer: Path, number: int) -> str:
    """How the tokenizer spells a special token; a name of one's own would become a new token."""
    added = json.loads(tokenizer.read_text())["added_tokens"]
    return next(str(token["content"]) for token in added if token["id"] == number)

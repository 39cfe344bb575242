"""Small architectures of every kind that open_clip has, registered under names of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import stand_ins

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}


def tiny_vit() -> dict[str, Any]:
    return {"embed_dim": 48, "vision_cfg": _VIT, "text_cfg": _TEXT}


def tiny_resnet() -> dict[str, Any]:
    """CLIP's modified ResNet, with QuickGELU in the text tower as OpenAI's models have it."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
    return {"embed_dim": 48, "quick_gelu": True, "vision_cfg": vision, "text_cfg": _TEXT}


def tiny_siglip(tokenizer: Path) -> dict[str, Any]:
    vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "linear"}
    text = {
        **_TEXT,
        "context_length": 16,
        "vocab_size": 300,
        "hf_tokenizer_name": str(tokenizer),
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    }
    return {
        "embed_dim": 48,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def tiny_mobileclip() -> dict[str, Any]:
    """FastViT blocks, whose parallel branches are fused before they are exported."""
    vision = {"image_size": 64, "timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None}
    return {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": {**_TEXT, "no_causal_mask": True},
    }


def tiny_roberta(folder: Path) -> dict[str, Any]:
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_pooler_type": "mean_pooler"}
    return {"embed_dim": 48, "vision_cfg": _VIT, "text_cfg": {**text, "context_length": 24}}


def tiny_coca() -> dict[str, Any]:
    """A captioner: its text tower appends a class token, its image tower pools by attention."""
    vision = {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {**_TEXT, "context_length": 20, "embed_cls": True, "output_tokens": True}
    captioner = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": text,
        "multimodal_cfg": {**captioner, "attn_pooler_heads": 2},
    }


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Let open_clip know the architectures of this module; ``folder`` takes what a hub would have."""
    roberta = stand_ins.roberta(
        folder / "roberta", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    architectures = {
        "tiny-vit": tiny_vit(),
        "tiny-resnet": tiny_resnet(),
        "tiny-siglip": tiny_siglip(stand_ins.siglip_tokenizer(folder / "siglip")),
        "tiny-mobileclip": tiny_mobileclip(),
        "tiny-roberta": tiny_roberta(roberta),
        "tiny-coca": tiny_coca(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, config in architectures.items():
            patch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        yield

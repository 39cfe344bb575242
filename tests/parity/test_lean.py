"""The towers as they are exported against open_clip's modules, in torch, where nothing else differs."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models import towers
from models.lean import LeanVisionTransformer
from models.manifest import ImageSpec

VISION = {"image_size": 48, "layers": 3, "width": 96, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 500, "width": 64, "heads": 2, "layers": 3}
SPEC = ImageSpec(size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bicubic")
PLAIN: dict[str, Any] = {}


def clip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """Small, with weights far enough from their start that every one of them counts."""
    torch.manual_seed(7)
    vision_cfg = open_clip.CLIPVisionCfg(**VISION, **(vision or {}))
    text_cfg = open_clip.CLIPTextCfg(**TEXT, **(text or {}))
    model = open_clip.model.CLIP(24, vision_cfg, text_cfg, **options).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    return (pixels.permute(0, 3, 1, 2) / 255 - mean) / std


def tokens(end: int) -> torch.Tensor:
    """Sequences that end in different places, padded with zeros."""
    rows = torch.zeros(3, 20, dtype=torch.int64)
    for row, length in zip(rows, (3, 11, 20), strict=True):
        row[:length] = torch.arange(5, 5 + length)
        row[length - 1] = end
    return rows


@pytest.mark.parametrize(
    ("vision", "options"),
    [
        (PLAIN, {}),
        (PLAIN, {"quick_gelu": True}),
        ({"ls_init_value": 0.3}, {}),
        ({"no_ln_pre": True, "final_ln_after_pool": True}, {}),
        ({"pool_type": "avg"}, {}),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, {}),
        ({"patch_dropout": 0.5}, {}),
        ({"block_type": "custom", "qk_norm": True}, {}),
    ],
    ids=str,
)
def test_pictures_get_the_features_that_open_clip_gives(vision: Any, options: Any) -> None:
    model = clip(vision, **options)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        wanted = functional.normalize(model.encode_image(scaled(pixels())), dim=-1)
        given = towers.ImageTower(model.visual, SPEC)(pixels())
    assert (wanted - given).abs().max() < 1e-6
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (PLAIN, 499),
        ({"pool_type": "eos", "eos_id": 2}, 2),
        ({"pool_type": "last"}, 499),
        ({"pool_type": "first", "no_causal_mask": True}, 499),
        ({"no_causal_mask": True}, 499),
        ({"ls_init_value": 0.3}, 499),
    ],
    ids=str,
)
def test_texts_get_the_features_that_open_clip_gives(text: Any, end: int) -> None:
    model = clip(text=text)
    with torch.inference_mode():
        wanted = functional.normalize(model.encode_text(tokens(end)), dim=-1)
        given = towers.text_tower(model)(tokens(end))
    assert (wanted - given).abs().max() < 1e-6
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


def test_the_last_block_works_for_one_token_alone() -> None:
    model = clip()
    whole = operations(lambda: model.encode_image(scaled(pixels())))
    lean = operations(lambda: towers.ImageTower(model.visual, SPEC)(pixels()))
    others, width = len(pixels()) * (48 // 16) ** 2, 96
    # Of the 12 width² of a block, queries, output and network: 1 + 1 + 8; and the scores of attention, twice.
    assert whole - lean == 2 * others * (10 * width**2 + 2 * 10 * width)


def test_a_tower_whose_patches_leave_pixels_over_keeps_its_convolution() -> None:
    odd = SPEC.model_copy(update={"size": 50})
    assert not isinstance(towers.ImageTower(clip().visual, odd).visual, LeanVisionTransformer)
    assert isinstance(towers.ImageTower(clip().visual, SPEC).visual, LeanVisionTransformer)


def operations(run: Any) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())

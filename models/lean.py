"""open_clip's transformers written for inference: the same function in fewer operations.

Three things are done otherwise than in training:

- **Only the token that is read leaves the last block.** CLIP reads the class token of a picture and the end
  token of a text. The last block needs the others as keys and values, but what it makes of them is read by
  nobody: ten twelfths of its multiplications, 7 % of a tower of twelve blocks.
- **Attention is written out**: no change of layout around it, and the scale of scores lies in the weights.
- **Patches are embedded by one matrix product**, into which the scaling of pixels is folded, in place of a
  convolution on scaled ones. Bytes are exact in every number format that models are served in; scaled pixels
  are not.

The weights are copied where they change and shared where they do not; the model given is left as it is. Only
the export imports this module: it needs torch.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.manifest import ImageSpec


class LeanTransformer(nn.Module):
    """``open_clip.transformer.Transformer`` of ``ResidualAttentionBlock``, batch first."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        blocks: Any = transformer.resblocks
        self.blocks = nn.ModuleList(_Block(block) for block in blocks)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(batch, length, width) → the same; ``attn_mask`` (length, length) is added to the scores."""
        for block in self.blocks:
            x = block(x, x, attn_mask)
        return x

    def pooled(self, x: Tensor, places: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """(batch, length, width) → (batch, width): of each sequence the token at its place.

        ``places`` int64 (batch,); the first tokens if left out.
        """
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, x, attn_mask)
        if places is None:
            one, mask = x[:, :1], None if attn_mask is None else attn_mask[:1]
        else:
            rows = torch.arange(x.shape[0], device=x.device)
            one = x[rows, places].unsqueeze(1)
            mask = None if attn_mask is None else attn_mask[places][:, None, None]
        pooled: Tensor = last(one, x, mask)[:, 0]
        return pooled


class LeanVisionTransformer(nn.Module):
    """``open_clip.transformer.VisionTransformer`` that pools its class token, pixels and all."""

    def __init__(self, visual: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        whole: Any = visual
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (spec.mean, spec.std)
        )
        kernel = whole.conv1.weight.detach().double()
        bias = -(kernel * (mean / std)).sum(dim=(1, 2, 3))
        width, _, self.patch, _ = kernel.shape
        self.patches = nn.Linear(3 * self.patch**2, width)
        # Pixels have their channels last.
        self.patches.weight.data = (kernel / (255 * std)).permute(0, 2, 3, 1).reshape(width, -1).float()
        self.patches.bias.data = bias.float()
        self.class_embedding = whole.class_embedding
        self.positional_embedding = whole.positional_embedding
        self.ln_pre = whole.ln_pre
        self.transformer = LeanTransformer(whole.transformer)
        self.ln_post = whole.ln_post
        self.proj = whole.proj

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels`` uint8 (batch, H, W, 3) → (batch, D)."""
        batch, side, patch = pixels.shape[0], pixels.shape[1] // self.patch, self.patch
        x = pixels.reshape(batch, side, patch, side, patch * 3).transpose(2, 3).reshape(batch, side**2, -1)
        x = self.patches(x.to(self.patches.weight.dtype))
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_post(self.transformer.pooled(self.ln_pre(x)))
        features: Tensor = x if self.proj is None else x @ self.proj
        return features


class _Block(nn.Module):
    """One residual block, for some tokens that attend to all."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.ls_1 = block.ln_1, block.ls_1
        self.attention = _Attention(block.attn)
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, some: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        asking = normed if some is x else self.ln_1(some)
        some = some + self.ls_1(self.attention(asking, normed, mask))
        changed: Tensor = some + self.ls_2(self.mlp(self.ln_2(some)))
        return changed


class _Attention(nn.Module):
    """``nn.MultiheadAttention`` (Vaswani et al. 2017, section 3.2.2), batch first."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = attention.embed_dim, attention.num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        weights, biases = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        scale = (width // self.heads) ** -0.5
        for part, weight, bias, by in zip(
            (self.query, self.key, self.value), weights.chunk(3), biases.chunk(3), (scale, 1, 1), strict=True
        ):
            part.weight.data, part.bias.data = weight * by, bias * by
        self.out = attention.out_proj

    def forward(self, asking: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, some, width) and (batch, length, width) → (batch, some, width)."""
        query, key, value = (
            self._heads(self.query(asking)),
            self._heads(self.key(x)),
            self._heads(self.value(x)),
        )
        scores = query @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        mixed = (functional.softmax(scores, dim=-1) @ value).transpose(1, 2)
        attended: Tensor = self.out(mixed.reshape(asking.shape))
        return attended

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, length, width) → (batch, heads, length, width of a head)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def lean_transformer(transformer: nn.Module) -> LeanTransformer | None:
    """``transformer`` for inference, or None if it is of another kind."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    whole: Any = transformer
    if type(transformer) is not Transformer or not whole.batch_first:
        return None
    if not all(_is_plain(block, ResidualAttentionBlock) for block in whole.resblocks):
        return None
    return LeanTransformer(transformer)


def lean_visual(visual: nn.Module, spec: ImageSpec) -> nn.Module:
    """``visual`` for inference: whole, or its transformer alone, or as it is where neither is usual."""
    from open_clip.transformer import VisionTransformer

    whole: Any = visual
    transformer = lean_transformer(whole.transformer) if isinstance(whole, VisionTransformer) else None
    if transformer is None:
        return visual
    if _embeds_patches(whole.conv1, spec.size) and whole.pool_type == "tok" and whole.attn_pool is None:
        return LeanVisionTransformer(whole, spec)
    changed: nn.Module = copy.copy(whole)
    changed._modules = whole._modules | {"transformer": transformer}
    return changed


def _is_plain(block: Any, kind: Any) -> bool:
    return type(block) is kind and not hasattr(block, "ln_1_kv")


def _embeds_patches(conv: nn.Conv2d, size: int) -> bool:
    """Whether a convolution takes every pixel of a picture once."""
    patch = conv.kernel_size[0]
    return conv.kernel_size == conv.stride == (patch, patch) and conv.bias is None and size % patch == 0

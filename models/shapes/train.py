"""Train the embedded model from nothing, on pictures and captions it draws itself, and export it.

``python -m models.shapes.train`` renders the data, trains, exports and measures: under 20 minutes on four
CPU cores. The seeds are fixed, so the same machine and library versions make the same files again.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.cores import available_cores
from models.export import export_model
from models.manifest import ImageSpec
from models.preprocess import Preprocessor
from models.shapes.captions import claims_of, describe, facts_of, true_of
from models.shapes.evaluate import FILES, evaluate
from models.shapes.pairs import TRAINING_PAIRS
from models.shapes.scenes import COLOURS, Scene, as_file, sample_scene
from models.shapes.tokenizer import CONTEXT_LENGTH, ShapesTokenizer

log = logging.getLogger(__name__)

IMAGE = ImageSpec(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what is learned.

    ``renders`` counts the pictures of each pair. A round takes one picture of every pair and is cut into
    ``batches_per_round``, so that a batch holds no pair twice and most of its negatives are true ones.
    """

    seed: int = 20
    renders: int = 640
    epochs: int = 4
    captions: int = 2  # of each picture, each time it is shown
    batches_per_round: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.06
    vision: tuple[int, int] = (128, 4)  # width, layers
    stem: tuple[int, ...] = (24, 48, 96, 128)  # channels; each step halves the picture's side
    text: tuple[int, int] = (128, 2)  # width, layers
    embedding: int = 128

    @property
    def steps(self) -> int:
        """How many batches there are in all."""
        return self.renders * self.epochs * self.batches_per_round


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The scene as the server will see it: uint8 (64, 64, 3), through a file and the real preprocessing."""
    return Preprocessor(IMAGE, max_pixels=2**20)(as_file(scene))


def training_scenes(recipe: Recipe) -> list[Scene]:
    """``renders`` scenes of every training pair, pair after pair."""
    return [
        sample_scene(recipe.seed * 10**8 + 1000 * number + copy, colour=colour, shape=shape)
        for number, (colour, shape) in enumerate(TRAINING_PAIRS)
        for copy in range(recipe.renders)
    ]


def render_all(scenes: list[Scene], workers: int) -> NDArray[np.uint8]:
    """Draw all scenes with ``workers`` processes: uint8 (scenes, 64, 64, 3)."""
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        return np.stack(list(pool.map(draw, scenes, chunksize=256)))


def batches(recipe: Recipe, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of scenes, one batch after another; no pair comes twice in a batch.

    Pairs of one colour stay together. Most negatives then differ in shape alone, which is what takes long
    to learn; the colour is learned almost at once.
    """
    colours = np.array([list(COLOURS).index(colour) for colour, _ in TRAINING_PAIRS])
    for _ in range(recipe.epochs):
        copies = rng.permuted(np.tile(np.arange(recipe.renders), (len(colours), 1)), axis=1)
        for copy in copies.T:
            pairs = np.argsort(rng.permutation(len(COLOURS))[colours], kind="stable")
            yield from np.array_split(pairs * recipe.renders + copy[pairs], recipe.batches_per_round)


def build_model(recipe: Recipe, vocabulary: int) -> Any:
    """An ``open_clip.CLIP`` of miniature size with seeded random weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(recipe.seed)
    width, layers = recipe.vision
    vision = CLIPVisionCfg(
        image_size=IMAGE.size,
        width=width,
        layers=layers,
        patch_size=2 ** len(recipe.stem),
        head_width=32,
        pool_type="avg",
    )
    width, layers = recipe.text
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=vocabulary, width=width, heads=width // 32, layers=layers
    )
    model = CLIP(recipe.embedding, vision, text)
    stem = convolutional_stem(recipe.stem, vision.width)
    model.visual.conv1 = stem.to(memory_format=torch.channels_last)
    return model


def convolutional_stem(channels: Sequence[int], width: int) -> torch.nn.Module:
    """Patches made by small overlapping convolutions instead of one large cut (Xiao et al. 2021).

    (N, 3, H, W) → (N, width, H / 2ⁿ, W / 2ⁿ) for n entries in ``channels``. A plain patch embedding
    learns the colours at once and the outlines only after far more pictures than we have time for.
    """
    layers: list[torch.nn.Module] = []
    before = 3
    for after in channels:
        layers += [*_convolution(before, after, stride=2), *_convolution(after, after, stride=1)]
        before = after
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(before, width, 1))


def _convolution(before: int, after: int, *, stride: int) -> tuple[torch.nn.Module, ...]:
    kernel = torch.nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return kernel, torch.nn.BatchNorm2d(after), torch.nn.ReLU()


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, true: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), shared out among all true pairings.

    ``image`` (N, D) and ``text`` (M, D) are normalised, ``true`` is bool (M, N). Where every picture has one
    caption that fits no other, as open_clip's ClipLoss assumes, the targets are the identity.
    """
    logits = scale * text @ image.T
    targets = true.float()
    per_text = functional.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    per_image = functional.cross_entropy(logits.T, (targets / targets.sum(0, keepdim=True)).T)
    return (per_text + per_image) / 2


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices alone; gains, biases and the logit scale stay free, as in open_clip's trainer."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def train(
    recipe: Recipe, scenes: Sequence[Scene], pixels: NDArray[np.uint8], tokenizer: ShapesTokenizer
) -> Any:
    """Train both towers together on ``pixels`` uint8 (scenes, 64, 64, 3); returns the ``open_clip.CLIP``."""
    model = build_model(recipe, tokenizer.vocabulary)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), betas=(0.9, 0.98))
    facts = facts_of(scenes)
    rng = np.random.default_rng(recipe.seed)
    for step, batch in enumerate(batches(recipe, rng)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step / recipe.steps, recipe.warmup)
        captions = [describe(scenes[i], rng) for i in batch for _ in range(recipe.captions)]
        tokens = tokenizer([caption.text for caption in captions])
        true = true_of(claims_of(captions), facts[batch])
        loss = _loss(model, pixels[batch], tokens, true)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0:
            log.info("step %5d of %d: loss %.3f", step, recipe.steps, loss.item())
    return model.eval()


def _loss(
    model: Any, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], true: NDArray[np.bool_]
) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE.mean, IMAGE.std))
    pictures = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    # Of so few tokens the plain formula is done in half the time of the fused kernel.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        image, text = model.encode_image(pictures), _encode_text(model, torch.from_numpy(tokens))
    image, text = (functional.normalize(features.float(), dim=-1) for features in (image, text))
    return contrastive_loss(image, text, model.logit_scale.exp(), torch.from_numpy(true))


def _encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The same as ``model.encode_text``, less what follows the last end token: the tower is causal."""
    ends = tokens.argmax(dim=1)
    length = int(ends.max()) + 1
    embedded = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    hidden = model.transformer(embedded, attn_mask=model.attn_mask[:length, :length])
    pooled: torch.Tensor = model.ln_final(hidden)[torch.arange(len(tokens)), ends]
    return torch.matmul(pooled, model.text_projection)


def schedule(progress: float, warmup: float) -> float:
    """Share of the learning rate at ``progress`` 0..1: linear warm-up, then half a cosine down to nothing."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train_tokenizer(recipe: Recipe, scenes: Sequence[Scene]) -> ShapesTokenizer:
    """Learn the vocabulary from one caption of every scene."""
    rng = np.random.default_rng(recipe.seed + 1)
    return ShapesTokenizer.train(describe(scene, rng).text for scene in scenes)


def export(model: Any, tokenizer: ShapesTokenizer) -> None:
    """Export through the code path of every other model; the model card stays where it is."""
    with TemporaryDirectory() as scratch:
        made = export_model(
            model,
            tokenizer,
            name="shapes",
            architecture="ViT-shapes-64",
            destination=Path(scratch) / "shapes",
            image=IMAGE,
            source="trained from nothing by models.shapes.train",
            licence="Apache-2.0",
            description="A miniature of CLIP that knows coloured shapes and nothing else.",
        )
        for file in made.iterdir():
            shutil.copyfile(file, FILES / file.name)


def main() -> None:
    """Render, train, export, measure."""
    parser = argparse.ArgumentParser(prog="python -m models.shapes.train", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=available_cores(), help="cores to use (default: all)")
    threads = parser.parse_args().threads
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d ms  %(message)s")
    torch.set_num_threads(threads)
    recipe = Recipe()
    scenes = training_scenes(recipe)
    pixels = render_all(scenes, threads)
    log.info("%d pictures rendered", len(scenes))
    tokenizer = train_tokenizer(recipe, scenes)
    export(train(recipe, scenes, pixels, tokenizer), tokenizer)
    log.info("exported")
    print(evaluate(copies=20))


if __name__ == "__main__":
    main()

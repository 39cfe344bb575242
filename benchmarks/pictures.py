"""Photo-like JPEGs and short prompts, the same for the same seed. Needs no files and no network."""

from __future__ import annotations

import io
import random
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_ADJECTIVES = """
    red blue green yellow black white small large old young wild wooden metal paper golden silver dark bright
    round square soft heavy spotted striped broken frozen wet dusty fluffy shiny rusty tiny giant plastic
    woollen painted carved folded hanging floating
"""
_NOUNS = """
    cat dog horse bird fish train truck bicycle boat plane house bridge tower church castle garden forest
    mountain river beach desert island apple banana orange bread cheese cake pizza coffee cup bottle spoon
    knife table chair sofa lamp clock mirror book pencil phone camera keyboard guitar piano drum violin
    ball racket glove hat shoe coat umbrella suitcase key coin candle flag
"""
# Amplitude falls as 1/f in the scene; the lens takes away some more.
_FALL = 1.3


def photo(width: int, height: int, *, seed: int, quality: int = 90) -> bytes:
    """A JPEG with the spectrum of a photograph and a few hard edges; 500×375 comes to about 60 kB."""
    rng = np.random.default_rng(seed)
    luma, *chroma = (_pink_noise(width, height, rng) for _ in range(3))
    channels = np.stack([128 + 52 * luma, 128 + 14 * chroma[0], 128 + 14 * chroma[1]], axis=-1)
    picture = Image.fromarray(channels.clip(0, 255).astype(np.uint8), "YCbCr").convert("RGB")
    draw = ImageDraw.Draw(picture, "RGBA")
    for _ in range(8):
        x, y, radius = rng.integers((0, 0, height // 16), (width, height, height // 4)).tolist()
        red, green, blue = rng.integers(0, 256, 3).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue, 150))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _pink_noise(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of variance 1, float32 (height, width), whose spectrum is that of a photograph."""
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height).astype(np.float32)[:, None],
        np.fft.rfftfreq(width, 1 / width).astype(np.float32)[None],
    )
    frequency[0, 0] = np.inf
    phase = rng.random(frequency.shape, np.float32) * np.float32(2 * np.pi)
    noise = np.fft.irfft2(np.exp(1j * phase) / frequency**_FALL, (height, width)).astype(np.float32)
    unit: NDArray[np.float32] = (noise - noise.mean()) / noise.std()
    return unit


def labels(count: int, *, seed: int = 0) -> list[str]:
    """Distinct class names of two words, followed by a number from the 2,401st on."""
    pairs = [" ".join(pair) for pair in product(_ADJECTIVES.split(), _NOUNS.split())]
    random.Random(seed).shuffle(pairs)
    rounds = range(-(-count // len(pairs)))
    return [f"{pair} {turn}" if turn else pair for turn in rounds for pair in pairs][:count]


def prompts(count: int, *, seed: int = 0) -> list[str]:
    """Distinct short texts, about ten tokens each."""
    return [f"a photo of a {label}." for label in labels(count, seed=seed)]

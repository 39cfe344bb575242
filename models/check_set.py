"""What an export is checked with: pictures of many kinds and shapes, and texts from empty to over-long.

Pictures are encoded files, so that decoding and preprocessing are checked along with the graph.
"""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import ExportError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
_Painter = Callable[[np.random.Generator, int, int], Image.Image]


@dataclass(frozen=True, kw_only=True)
class CheckSet:
    """Encoded pictures and texts, each different from every other."""

    pictures: tuple[bytes, ...]
    texts: tuple[str, ...]

    @classmethod
    def build(cls, *, size: int, context_length: int, folder: Path | None = None, seed: int = 0) -> CheckSet:
        """Generated pictures around the model's own ``size`` (pixels), those in ``folder``, and texts.

        The same arguments give the same set.

        Raises:
            ExportError: ``folder`` is no folder, or holds no picture.
        """
        own = pictures_of(folder, "check_images") if folder else ()
        return cls(pictures=(*_generated(size, seed), *own), texts=texts_of(context_length, seed))


def pictures_of(folder: Path, field: str) -> tuple[bytes, ...]:
    """Every picture file that lies in ``folder``, sorted by name.

    Raises:
        ExportError: it is no folder, or holds no picture; the text names ``field``.
    """
    if not folder.is_dir():
        raise ExportError(f"{field}: {folder} is no folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ExportError(f"{field}: {folder} holds no picture ({', '.join(sorted(_SUFFIXES))})")
    return tuple(path.read_bytes() for path in paths)


def _generated(size: int, seed: int) -> list[bytes]:
    """Nine kinds in four shapes: the model's own, a wide and a tall one to shrink, a small one to enlarge."""
    shapes = [(size, size), (2 * size, size + 7), (size + 3, size * 3 // 2), (size // 2 + 1, size // 3 + 2)]
    random = np.random.default_rng(seed)
    pictures = []
    for painter in (_gradient, _noise, _pink_noise, _checkers, _discs, _polygons, _letters, _stripes, _scene):
        for number, (width, height) in enumerate(shapes):
            picture = painter(random, width, height)
            if number == 3 and painter is _gradient:
                picture = picture.convert("L")
            pictures.append(_encoded(picture, lossy=number == 1))
    return pictures


def _encoded(picture: Image.Image, *, lossy: bool) -> bytes:
    stream = io.BytesIO()
    if lossy:
        picture.save(stream, "JPEG", quality=90)
    else:
        picture.save(stream, "PNG")
    return stream.getvalue()


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue


def _from_unit(values: NDArray[np.float64]) -> Image.Image:
    """(H, W, 3) of about 0..1 → picture."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _gradient(random: np.random.Generator, width: int, height: int) -> Image.Image:
    start, right, down = random.random((3, 3))
    x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    return _from_unit(start + (right - start) * x + (down - start) * y)


def _noise(random: np.random.Generator, width: int, height: int) -> Image.Image:
    return _from_unit(random.random((height, width, 3)) * random.random(3))


def _pink_noise(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls as 1/frequency, as it does in photographs (Field, JOSA A 1987)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(random.standard_normal((3, height, width))) / frequency
    field = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)
    return _from_unit(random.random(3) + 0.2 * field / field.std())


def _checkers(random: np.random.Generator, width: int, height: int) -> Image.Image:
    side = int(random.integers(3, 24))
    odd = (np.arange(height)[:, None] // side + np.arange(width)[None, :] // side) % 2
    return Image.fromarray(np.array([_colour(random), _colour(random)], np.uint8)[odd])


def _stripes(random: np.random.Generator, width: int, height: int) -> Image.Image:
    along, across = random.normal(0, 0.2, 2)
    phase = along * np.arange(width)[None, :, None] + across * np.arange(height)[:, None, None]
    return _from_unit(0.5 + 0.5 * np.sin(phase + random.random(3) * 3))


def _discs(random: np.random.Generator, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), _colour(random))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = random.integers(0, (width, height)).tolist()
        radius = int(random.integers(2, max(3, min(width, height) // 4)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), _colour(random))
    return picture


def _polygons(random: np.random.Generator, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), _colour(random))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        corners = random.integers(0, (width, height), (int(random.integers(3, 6)), 2))
        draw.polygon([(x, y) for x, y in corners.tolist()], _colour(random))
    return picture


def _letters(random: np.random.Generator, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), (245, 243, 238))
    draw = ImageDraw.Draw(picture)
    letters = np.array(list(string.ascii_letters + "     "))
    for line in range(4, height, 13):
        draw.text((4, line), "".join(random.choice(letters, width // 6)), (30, 30, 40))
    return picture


def _scene(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes before a background that looks like a photograph's."""
    return Image.blend(_pink_noise(random, width, height), _discs(random, width, height), 0.5)


_PHRASES = (
    "a",
    "cat",
    "a photo of a dog",
    "A Photo Of Two CATS, asleep!",
    "an aerial view of a harbour at dusk, with fishing boats & gulls",
    "it's the year 1984; 3.14159 isn't 22/7",
    "snow-covered mountains under a pink sky",
    "a red circle next to a blue square on a green background",
    "ein gelber Schmetterling auf einer Blüte",
    "une tasse de café sur la table",
    "Кошка спит на диване",
    "一只在雪地里奔跑的狗",
    "🐶 and 🐱 are friends",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; twice escaped",
    "   many \t kinds \n of   white space   ",
    "naïve façade — “curly quotes” … and a dash",
    "x" * 40,
    "!!! ??? ...",
    "",
)


def texts_of(context_length: int, seed: int) -> tuple[str, ...]:
    """Phrases, and word salads from a few words to twice what the context can hold."""
    random = np.random.default_rng(seed + 1)
    words = np.array(["red", "small", "photo", "drawing", "of", "the", "dog", "house", "under", "river", "7"])
    lengths = [3, 6, 10, 16, 24, 40, context_length - 2, context_length, 2 * context_length]
    salads = (" ".join(random.choice(words, length)) for length in lengths)
    return (*_PHRASES, *salads)

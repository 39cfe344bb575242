"""Pictures broken at random, the same for the same seed: what hostile and unlucky clients send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from models.preprocess import FORMATS
from tests.pictures import animated_gif, cmyk_jpeg, deep_png, encode, rotated_jpeg, scene

_LIES = (0, 1, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> list[bytes]:
    """Sound pictures of every format, and of the variants that decoders treat apart."""
    rgb, pages = scene(1), [scene(2), scene(3)]
    palette, clear = rgb.quantize(32), rgb.copy()
    clear.putalpha(rgb.convert("L"))
    pictures = [
        *(encode(rgb, name) for name in FORMATS),
        *(encode(rgb, "JPEG", progressive=True, quality=quality) for quality in (30, 95)),
        *(encode(rgb.convert(mode), "PNG") for mode in ("1", "L", "LA", "RGBA")),
        *(encode(rgb.convert(mode), "BMP") for mode in ("1", "L", "RGBA")),
        *(encode(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits", "tiff_deflate")),
        encode(rgb.convert("1"), "TIFF", compression="group4"),
        encode(rgb, "TIFF", save_all=True, append_images=pages),
        encode(rgb, "WEBP", lossless=True),
        encode(clear, "WEBP", save_all=True, append_images=pages),
        *(encode(palette, name, transparency=3) for name in ("PNG", "GIF")),
        encode(rgb.convert("L"), "JPEG"),
    ]
    return [*pictures, animated_gif(), deep_png(), cmyk_jpeg(), rotated_jpeg()]


def broken(pictures: Sequence[bytes], random: Random) -> bytes:
    """One of ``pictures`` after one to four mutations."""
    data = bytearray(random.choice(pictures))
    for _ in range(random.randint(1, 4)):
        random.choice(_MUTATIONS)(data, random.choice(pictures), random)
    return bytes(data)


def _flip(data: bytearray, _: bytes, random: Random) -> None:
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _truncate(data: bytearray, _: bytes, random: Random) -> None:
    del data[random.randint(0, len(data)) :]


def _drop(data: bytearray, _: bytes, random: Random) -> None:
    del data[_span(data, random)]


def _repeat(data: bytearray, _: bytes, random: Random) -> None:
    chosen = _span(data, random)
    data[chosen.stop : chosen.stop] = bytes(data[chosen]) * random.choice((1, 2, 20))


def _swap(data: bytearray, _: bytes, random: Random) -> None:
    first, second = sorted((_span(data, random), _span(data, random)), key=lambda one: one.start)
    if first.stop <= second.start:
        data[first], data[second.start : second.stop] = data[second], data[first]


def _splice(data: bytearray, other: bytes, random: Random) -> None:
    """Part of another picture, perhaps of another format, in place of a part of this one."""
    data[_span(data, random)] = other[_span(other, random)]


def _lie(data: bytearray, _: bytes, random: Random) -> None:
    """A number that may well be a length, a size or an offset, most likely in the header."""
    width = random.choice((1, 2, 4))
    last = max(0, min(len(data), random.choice((64, len(data)))) - width)
    place = random.randint(0, last)
    lie = random.choice(_LIES) & (256**width - 1)
    data[place : place + width] = lie.to_bytes(width, random.choice(("big", "little")))


def _append(data: bytearray, other: bytes, random: Random) -> None:
    data += random.choice((other, random.randbytes(random.randint(1, 300)), bytes(1000)))


def _span(data: bytes | bytearray, random: Random) -> slice:
    start = random.randint(0, len(data))
    return slice(start, min(len(data), start + random.choice((1, 4, 16, 64, 1024))))


_MUTATIONS: tuple[Callable[[bytearray, bytes, Random], None], ...] = (
    _flip,
    _flip,
    _truncate,
    _drop,
    _repeat,
    _swap,
    _splice,
    _lie,
    _lie,
    _append,
)

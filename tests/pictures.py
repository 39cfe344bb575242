"""Pictures made on the spot: sound ones, each unlike the others, and every kind of bad one."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def scene(seed: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    """Smooth patches of colour, so that resizing keeps what tells one seed from another."""
    random = np.random.default_rng(seed)
    cells = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return cells.resize((width, height), Image.Resampling.BICUBIC)


def encode(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def png(seed: int = 0, width: int = 48, height: int = 40) -> bytes:
    return encode(scene(seed, width, height))


def jpeg(seed: int = 0, width: int = 48, height: int = 40) -> bytes:
    return encode(scene(seed, width, height), "JPEG", quality=92)


def truncated_jpeg() -> bytes:
    whole = jpeg(1, 300, 200)
    return whole[: len(whole) // 2]


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def animated_gif() -> bytes:
    first, *others = (scene(seed).quantize(64) for seed in range(3))
    return encode(first, "GIF", save_all=True, append_images=others, duration=50)


def deep_png() -> bytes:
    """16 bits a pixel."""
    ramp = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48)
    return encode(Image.fromarray(ramp))


def cmyk_jpeg() -> bytes:
    return encode(scene(4).convert("CMYK"), "JPEG")


def rotated_jpeg(seed: int = 5) -> bytes:
    """``scene(seed)`` lying on its side, and EXIF data that says how to set it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(scene(seed).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)

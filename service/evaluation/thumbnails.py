"""Small copies of pictures that fit into a page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from models.errors import ImageError
from models.manifest import ImageSpec
from models.preprocess import Preprocessor

SIDE = 128
_NO_SCALING = (0.0, 0.0, 0.0)


def thumbnails(folder: Path, paths: Iterable[str], *, max_pixels: int) -> dict[str, str]:
    """A data URI, JPEG of 128 × 128 pixels with grey margins, of each picture that can be read here."""
    spec = ImageSpec(size=SIDE, resize="longest", fill=(128, 128, 128), mean=_NO_SCALING, std=_NO_SCALING)
    shrink = Preprocessor(spec, max_pixels=max_pixels)
    made = {}
    for path in paths:
        try:
            picture = Image.fromarray(shrink((folder / path).read_bytes()))
        except (ImageError, OSError):  # it may have gone, or a server may take what is refused here
            continue
        made[path] = _data_uri(picture)
    return made


def _data_uri(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"

"""Picture bytes → uint8 pixels, bit for bit as the reference does before it scales and normalises.

Reference: ``open_clip.transform.image_transform``, that is torchvision's ``Resize`` and ``CenterCrop`` on a
Pillow image, then ``convert("RGB")``. Resizing in the picture's own mode comes first, and matters: palette
pictures are resized without interpolation, transparent ones with their colours weighted by alpha.
"""

from __future__ import annotations

import re
import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, features

from models.errors import ImageError, ImageTooLargeError, InvalidImageError, UnsupportedImageFormatError
from models.manifest import ImageSpec

# Pillow warns about metadata that has no bearing on the pixels. Filtered once, at import: the filters belong
# to the whole process, so switching them around each picture would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.init()

_DRAFTABLE = frozenset({"JPEG", "MPO"})
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
# By these, in small letters, pictures are told from other files in folders and archives.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo", ".avif"})

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))  # width and height change places

# A long and narrow picture is enlarged by the reference until its short side fits, and then nearly all of it
# is cropped away: a kilobyte can ask for terabytes. Up to so many pixels that is done at once; beyond them it
# is done piece by piece, and the long side may be so many times the short one.
_ENLARGED_AT_ONCE = 2**24
_NARROWEST = 2048
_STRIP = 16

# How much larger than the resized picture, in width and height, a JPEG decoded at a fraction of its size is.
# Smallest cosine to the exact path's features, ViT-B-32 with random weights, 72 enlarged photographs and 9
# generated pictures: 0.9932 with 1; 0.99948 with 1.25 and with 2, by noise (photographs alone 0.99978 and
# 0.99997); 0.99997 with 3, which is slower.
_MARGIN = 2

# Each scan of a JPEG goes over the whole picture, and one of 42 bytes is enough for that: 140 kB took half a
# minute to decode. The usual script of a progressive picture has 10 scans, that of one in CMYK 18.
_MAX_SCANS = 32
_MAX_MARKERS = 10_000
_SCAN, _BEGIN, _END = 0xDA, 0xD8, 0xD9
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart within a scan


class Preprocessor:
    """Decodes a picture and brings it to the ``size`` × ``size`` pixels that ``spec`` describes.

    Keeps no state, so any number of threads may share one; Pillow frees the GIL while it decodes and resizes.
    ``max_pixels`` bounds width × height as the header states it, before anything is decoded. ``exif`` turns
    pictures upright as their EXIF orientation says, before all else, which the reference does not do.

    ``fast`` gives the reference's pixels up: a JPEG is decoded at a half, a quarter or an eighth of its size,
    as long as that is twice as wide and high as what the resize makes of it.
    """

    def __init__(self, spec: ImageSpec, *, max_pixels: int, exif: bool = True, fast: bool = False) -> None:
        self._spec = spec
        self._max_pixels = max_pixels
        self._exif = exif
        self._fast = fast
        self._resampling = _RESAMPLING[spec.interpolation]

    def __call__(self, data: bytes | memoryview) -> NDArray[np.uint8]:
        """Encoded picture → RGB pixels, uint8 (size, size, 3), C-contiguous; of an animation the first frame.

        Raises:
            UnsupportedImageFormatError: the bytes begin as no picture format of ``FORMATS`` does.
            ImageTooLargeError: more pixels than ``max_pixels``, or too narrow to be resized.
            InvalidImageError: the picture is truncated or broken.
        """
        try:
            with self._open(data) as image:
                # In one piece: wherever a piece ends, the JPEG decoder does the last block anew.
                image.decodermaxblock = max(image.decodermaxblock, len(data))
                fitted = (self._fit_fraction(image) if self._fast else None) or self._fit_whole(image)
                return np.asarray(fitted if fitted.mode == "RGB" else fitted.convert("RGB"))
        except ImageError:
            raise
        except Image.DecompressionBombError as error:  # a decoder that looks before the header is known here
            raise ImageTooLargeError(
                f"the picture has too many pixels; the limit is {self._max_pixels}"
            ) from error
        except Exception as error:  # decoders of hostile bytes trip over anything, and say so in words of C
            raise InvalidImageError("the picture cannot be decoded: it is truncated or broken") from error

    def _open(self, data: bytes | memoryview) -> ImageFile.ImageFile:
        """Read the header only. Not by ``Image.open``, whose limit on pixels warns and is no one's choice."""
        stream = BytesIO(data)
        prefix = stream.read(16)
        for name in FORMATS:
            factory, accept = Image.OPEN[name]
            if accept is not None and accept(prefix) is True:
                if name == "JPEG":
                    _check_scans(bytes(data))
                stream.seek(0)
                image: ImageFile.ImageFile = factory(stream, "")
                self._check_size(image)
                return image
        what = "it begins like none of them" if prefix else "it is empty (0 bytes)"
        raise UnsupportedImageFormatError(f"the picture must be {', '.join(FORMATS)}; {what}")

    def _check_size(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self._max_pixels:
            raise ImageTooLargeError(
                f"the picture has {width}×{height} = {width * height} pixels; the limit is {self._max_pixels}"
            )

    def _turn(self, image: Image.Image) -> Image.Transpose | None:
        if not self._exif:
            return None
        try:
            return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # broken metadata beside good pixels: show them as they lie
            return None

    def _fit_whole(self, image: Image.Image) -> Image.Image:
        image.load()
        turn = self._turn(image)
        upright = image if turn is None else image.transpose(turn)
        target = self._target(upright.size)
        if self._spec.resize == "shortest":
            return self._cover(upright, *target)
        return self._pad(self._resize(upright, *target))

    def _fit_fraction(self, image: Image.Image) -> Image.Image | None:
        """A JPEG decoded at a fraction of its size; None, and nothing done, where it is no JPEG or too small.

        The last pixels may lie partly beyond the picture, as its sides need not be divisible. ``region``
        leaves that out, and holds for the picture as it lies in the file: so it is turned after the resize.
        """
        if image.format not in _DRAFTABLE:
            return None
        turn, whole = self._turn(image), image.size
        lies = turn in _LYING
        target = self._target(whole[::-1] if lies else whole)
        width, height = target[::-1] if lies else target
        draft = image.draft(None, (_MARGIN * width, _MARGIN * height))
        if draft is None or image.size == whole:
            return None
        region = draft[1]
        image.load()
        resized = image.resize((width, height), self._resampling, region)
        upright = resized if turn is None else resized.transpose(turn)
        return self._crop(upright) if self._spec.resize == "shortest" else self._pad(upright)

    def _target(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Width and height that a picture is resized to, before what is beyond ``size`` is cropped."""
        size = self._spec.size
        width, height = whole
        match self._spec.resize:
            case "squash":
                return size, size
            case "shortest":
                short = min(width, height)
                return int(size * width / short), int(size * height / short)
            case "longest":
                ratio = max(width / size, height / size)
                # The reference fails on a side that rounds to nothing; one pixel of it is kept here.
                return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), self._resampling)

    def _cover(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize to ``width`` × ``height``, of which neither is below ``size``, and keep the middle."""
        if width * height > _ENLARGED_AT_ONCE and width > image.width:
            return self._enlarge_piecewise(image, width, height, *self._corner(width, height))
        return self._crop(self._resize(image, width, height))

    def _crop(self, image: Image.Image) -> Image.Image:
        size = self._spec.size
        left, top = self._corner(*image.size)
        return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the middle; round() is the reference's: half a pixel goes to the even neighbour."""
        return round((width - self._spec.size) / 2), round((height - self._spec.size) / 2)

    def _enlarge_piecewise(
        self, image: Image.Image, width: int, height: int, left: int, top: int
    ) -> Image.Image:
        """Equal to resizing and cropping, without ever holding the whole.

        When it enlarges, Pillow resizes rows first and columns after, rounding in between, and no column
        depends on another: those that the crop drops can go before the second step, and the rest can take it
        strip by strip.
        """
        if max(image.size) > _NARROWEST * min(image.size):
            raise ImageTooLargeError(
                f"the picture of {image.width}×{image.height} pixels is too narrow:"
                f" its long side may be at most {_NARROWEST} times its short side"
            )
        size = self._spec.size
        premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode)
        source = image if premultiplied is None else image.convert(premultiplied)
        rows = self._resize(source, width, image.height).crop((left, 0, left + size, image.height))
        middle = Image.new(rows.mode, (size, size))
        for x in range(0, size, _STRIP):
            right = min(x + _STRIP, size)
            columns = self._resize(rows.crop((x, 0, right, rows.height)), right - x, height)
            middle.paste(columns.crop((0, top, right - x, top + size)), (x, 0))
        if (palette := image.getpalette()) is not None:
            middle.putpalette(palette)
        return middle if premultiplied is None else middle.convert(image.mode)

    def _pad(self, image: Image.Image) -> Image.Image:
        """Centre on a square of the fill colour; an odd pixel of border goes right or below."""
        size = self._spec.size
        if image.size == (size, size):
            return image
        fill = self._spec.fill
        if len(set(fill)) > 1:
            image = image.convert("RGB")
        # A grey fill is the reference's single number: it stands for every channel of the picture's own mode,
        # in a palette picture for an index.
        channels = len(image.getbands())
        colour = fill if len(set(fill)) > 1 else (fill[0],) * channels if channels > 1 else fill[0]
        canvas = Image.new(image.mode, (size, size), colour)
        if (palette := image.getpalette()) is not None:
            canvas.putpalette(palette)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return canvas


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG that is drawn over and over. Behind its end anything may lie, such as a video."""
    if data.count(bytes((0xFF, _SCAN))) <= _MAX_SCANS:  # true of nearly all, and quick to see
        return
    place = scans = 0
    for _ in range(_MAX_MARKERS):
        found = _MARKER.search(data, place)
        if found is None or found[1][0] == _END:
            return
        marker = found[1][0]
        scans += marker == _SCAN
        if scans > _MAX_SCANS:
            raise InvalidImageError(f"the picture has more than the {_MAX_SCANS} scans that a JPEG may have")
        place = found.end()
        if marker != _BEGIN:
            place += int.from_bytes(data[place : place + 2])  # its length: what is inside is no marker
    raise InvalidImageError(f"the picture has more than the {_MAX_MARKERS} markers that a JPEG may have")

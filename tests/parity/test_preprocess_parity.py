"""The pixels are open_clip's, bit for bit: its own transform, up to ToTensor and Normalize, is the judge."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from models.manifest import ImageSpec
from models.preprocess import FORMATS, Preprocessor

pytest.importorskip("open_clip", reason="parity needs the extra `export`")

from open_clip.transform import image_transform

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS = sorted((SHARED / "photos").glob("*.webp"))
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZES = ("shortest", "longest", "squash")


def expected(data: bytes, spec: ImageSpec) -> np.ndarray:
    transform = image_transform(
        spec.size,
        is_train=False,
        resize_mode=spec.resize,
        interpolation=spec.interpolation,
        fill_color=spec.fill[0],
    )
    image = Image.open(BytesIO(data))
    for step in transform.transforms[:-2]:
        image = step(image)
    return np.asarray(image)


def assert_equal(data: bytes, **spec_fields: object) -> None:
    spec = ImageSpec.model_validate({"size": 224, "mean": CLIP_MEAN, "std": CLIP_STD, **spec_fields})
    found = Preprocessor(spec, max_pixels=2**26, exif=False)(data)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected(data, spec))


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over gradients, so that every pixel and every channel differs."""
    noise = np.random.default_rng([width, height]).integers(0, 120, (height, width, 4))
    noise[..., 0] += np.linspace(0, 135, width, dtype=int)
    noise[..., 1] += np.linspace(0, 135, height, dtype=int)[:, None]
    noise[..., 3] *= 2
    pixels = noise.astype(np.uint8)
    match mode:
        case "I;16":
            return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        case "RGBA" | "LA":
            return Image.fromarray(pixels, "RGBA").convert(mode)
        case "P":
            return Image.fromarray(pixels[..., :3]).quantize(64)
        case _:
            return Image.fromarray(pixels[..., :3]).convert(mode)


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def transparent_palette(width: int, height: int) -> bytes:
    return encode(scene(width, height, "P"), "PNG", transparency=3)


def palette_with_alpha_table(width: int, height: int) -> bytes:
    return encode(scene(width, height, "P"), "PNG", transparency=bytes(range(64)))


KINDS: dict[str, Callable[[int, int], bytes]] = {
    "jpeg-444": lambda w, h: encode(scene(w, h), "JPEG", subsampling=0, quality=95),
    "jpeg-422": lambda w, h: encode(scene(w, h), "JPEG", subsampling=1),
    "jpeg-420": lambda w, h: encode(scene(w, h), "JPEG", subsampling=2),
    "jpeg-progressive": lambda w, h: encode(scene(w, h), "JPEG", progressive=True),
    "jpeg-grey": lambda w, h: encode(scene(w, h, "L"), "JPEG"),
    "jpeg-cmyk": lambda w, h: encode(scene(w, h, "CMYK"), "JPEG"),
    "mpo": lambda w, h: encode(scene(w, h), "MPO", save_all=True, append_images=[scene(w, h).rotate(180)]),
    "png": lambda w, h: encode(scene(w, h), "PNG"),
    "png-grey": lambda w, h: encode(scene(w, h, "L"), "PNG"),
    "png-grey-alpha": lambda w, h: encode(scene(w, h, "LA"), "PNG"),
    "png-alpha": lambda w, h: encode(scene(w, h, "RGBA"), "PNG"),
    "png-palette": lambda w, h: encode(scene(w, h, "P"), "PNG"),
    "png-palette-transparent": transparent_palette,
    "png-palette-alpha-table": palette_with_alpha_table,
    "png-16-bit": lambda w, h: encode(scene(w, h, "I;16"), "PNG"),
    "png-1-bit": lambda w, h: encode(scene(w, h, "1"), "PNG"),
    "webp-lossy": lambda w, h: encode(scene(w, h), "WEBP", quality=80, method=0),
    "webp-lossless": lambda w, h: encode(scene(w, h), "WEBP", lossless=True, method=0),
    "webp-alpha": lambda w, h: encode(scene(w, h, "RGBA"), "WEBP", method=0),
    "gif": lambda w, h: encode(scene(w, h, "P"), "GIF"),
    "gif-transparent": lambda w, h: encode(scene(w, h, "P"), "GIF", transparency=5),
    "bmp": lambda w, h: encode(scene(w, h), "BMP"),
    "bmp-1-bit": lambda w, h: encode(scene(w, h, "1"), "BMP"),
    "tiff": lambda w, h: encode(scene(w, h), "TIFF", compression="tiff_lzw"),
    "tiff-cmyk": lambda w, h: encode(scene(w, h, "CMYK"), "TIFF"),
    "tiff-16-bit": lambda w, h: encode(scene(w, h, "I;16"), "TIFF"),
}
if "AVIF" in FORMATS:
    KINDS["avif"] = lambda w, h: encode(scene(w, h), "AVIF", speed=10)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(kind: str, resize: str) -> None:
    assert_equal(KINDS[kind](301, 242), resize=resize)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel_and_pictures_smaller_than_the_target(kind: str) -> None:
    for width, height in ((1, 1), (7, 5), (223, 100)):
        for resize in RESIZES:
            assert_equal(KINDS[kind](width, height), resize=resize, size=64)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, 224, 336])
def test_sizes_and_interpolations(size: int, interpolation: str) -> None:
    for resize in RESIZES:
        for width, height in ((500, 375), (333, 500), (size, size), (size + 1, size)):
            data = KINDS["png-alpha"](width, height)
            assert_equal(data, size=size, interpolation=interpolation, resize=resize)


@pytest.mark.parametrize("kind", ["png", "png-grey", "png-alpha", "png-palette", "png-1-bit", "png-16-bit"])
@pytest.mark.parametrize("shape", [(1, 400), (2000, 3), (3, 1999), (63, 700), (200, 10)])
def test_narrow_pictures_enlarged_piece_by_piece(
    kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.preprocess._ENLARGED_AT_ONCE", 0)
    assert_equal(KINDS[kind](*shape), size=64)


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (3000, 2)])
def test_extreme_aspect_ratios(shape: tuple[int, int]) -> None:
    for resize in RESIZES[:1] + RESIZES[2:]:  # open_clip itself fails where "longest" leaves no pixel
        assert_equal(KINDS["png-grey"](*shape), resize=resize)


@pytest.mark.parametrize("kind", ["png", "png-grey", "png-palette", "png-16-bit", "png-alpha", "tiff-cmyk"])
def test_grey_fill(kind: str) -> None:
    assert_equal(KINDS[kind](90, 31), size=64, resize="longest", fill=(7, 7, 7))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from([32, 64, 224, 336]),
    resize=st.sampled_from(RESIZES),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    kind=st.sampled_from(["bmp", "png-alpha", "png-grey", "png-palette"]),
)
def test_any_shape(width: int, height: int, size: int, resize: str, interpolation: str, kind: str) -> None:
    ratio = max(width, height) / min(width, height)
    if ratio > 40 or (resize == "longest" and ratio >= size):
        height = width
    assert_equal(KINDS[kind](width, height), size=size, resize=resize, interpolation=interpolation)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(200, 900),
    height=st.integers(200, 900),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.sampled_from(
        [30, 90, 98]
    ),  # files of 10 kB to 1 MB: more than a decoder is usually fed at once
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
)
def test_jpegs_fed_in_one_piece(width: int, height: int, mode: str, **options: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile, "MAXBLOCK", 2**23)  # Pillow writes progressive files in one piece of this
        data = encode(scene(width, height, mode), "JPEG", **options)
    assert_equal(data)


@pytest.mark.skipif(not PHOTOS, reason="the photographs of ../shared/photos are not here")
@pytest.mark.parametrize("resize", RESIZES)
def test_photographs(resize: str) -> None:
    for photo in PHOTOS:
        assert_equal(photo.read_bytes(), resize=resize)


def test_openais_own_preprocessing() -> None:
    folder = SHARED / "goldens" / "preprocess"
    if not folder.is_dir():
        pytest.skip("the reference outputs of ../shared/goldens are not here")
    golden = np.load(folder / "expected_preprocessed_image.npy")[0]
    spec = ImageSpec(size=224, mean=CLIP_MEAN, std=CLIP_STD)
    pixels = Preprocessor(spec, max_pixels=2**26)((folder / "franz-kafka.jpg").read_bytes())
    normalised = (pixels.transpose(2, 0, 1) / 255.0 - np.reshape(CLIP_MEAN, (3, 1, 1))) / np.reshape(
        CLIP_STD, (3, 1, 1)
    )
    assert np.abs(normalised - golden).max() <= 1e-6

"""What pictures are refused and how, what orientation does, and that nothing but our own errors comes out."""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import ImageError, ImageTooLargeError, InvalidImageError, UnsupportedImageFormatError
from models.manifest import ImageSpec
from models.preprocess import FORMATS, Preprocessor

SPEC = ImageSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(scope="module")
def preprocess() -> Preprocessor:
    return Preprocessor(SPEC, max_pixels=1_000_000)


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def quarters(size: int = 64) -> Image.Image:
    """Red, green / blue, white: every flip and turn of it looks different."""
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    return image.resize((size, size), Image.Resampling.NEAREST)


def noise(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(channel) for channel in pixels[y, x]) for y, x in ((4, 4), (4, 27), (27, 4), (27, 27))]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def grey_png(width: int, height: int) -> bytes:
    """A grey picture of any shape, written without ever holding its pixels twice."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 1) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


SEEDS = {
    "JPEG": encode(noise(), "JPEG"),
    "JPEG progressive": encode(noise(), "JPEG", progressive=True, exif=Image.Exif()),
    "JPEG with EXIF": encode(
        noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "PNG": encode(noise(), "PNG"),
    "PNG palette": encode(noise().quantize(16), "PNG", transparency=3),
    "WEBP": encode(noise(), "WEBP"),
    "WEBP lossless": encode(noise(), "WEBP", lossless=True),
    "GIF": encode(noise(), "GIF", save_all=True, append_images=[noise(1)]),
    "BMP": encode(noise(), "BMP"),
    "TIFF": encode(noise(), "TIFF"),
    "TIFF deflate": encode(noise(), "TIFF", compression="tiff_adobe_deflate"),
    "MPO": encode(noise(), "MPO", save_all=True, append_images=[noise(1)]),
}
if "AVIF" in FORMATS:
    SEEDS["AVIF"] = encode(noise(), "AVIF", speed=10)


@pytest.mark.parametrize("name", SEEDS)
def test_every_accepted_format(name: str, preprocess: Preprocessor) -> None:
    pixels = preprocess(memoryview(SEEDS[name]))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 20


def test_empty_upload_is_said_to_be_empty(preprocess: Preprocessor) -> None:
    with pytest.raises(
        UnsupportedImageFormatError, match=r"JPEG, PNG, WEBP, GIF, BMP, TIFF.*empty \(0 bytes\)"
    ):
        preprocess(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"just some text, called cat.png",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xff",
        b"P6 1 1 255 abc",
    ],
)
def test_what_is_no_picture_names_the_accepted_formats(data: bytes, preprocess: Preprocessor) -> None:
    with pytest.raises(UnsupportedImageFormatError, match="must be JPEG, PNG"):
        preprocess(data)


def test_formats_that_pillow_knows_but_we_do_not_accept(preprocess: Preprocessor) -> None:
    for format_ in ("PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(UnsupportedImageFormatError):
            preprocess(encode(noise(), format_))


def test_size_is_checked_from_the_header_alone(preprocess: Preprocessor) -> None:
    with pytest.raises(ImageTooLargeError, match=r"30000×30000 = 900000000 pixels; the limit is 1000000"):
        preprocess(png_header(30_000, 30_000) + png_chunk(b"IDAT", b""))


def test_size_is_checked_where_pillow_itself_looks_first(preprocess: Preprocessor) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = b"\xff\x3f\0" * 2  # 16384×16384, stored less one
    with pytest.raises(ImageTooLargeError, match=r"limit is 1000000$"):
        preprocess(bytes(data))


def scanned(times: int, after: bytes = b"", **options: object) -> bytes:
    """A progressive JPEG whose last scan comes so many times more, and what lies behind its end."""
    picture = encode(noise(size=(160, 120)), "JPEG", progressive=True, **options)
    scan, end = picture[picture.rindex(b"\xff\xda") : -2], picture[-2:]
    return picture[:-2] + scan * times + end + after


def test_a_jpeg_that_is_drawn_over_and_over_is_refused_undecoded(preprocess: Preprocessor) -> None:
    """33 scans are too many; the usual 10 and what is not part of the picture are not."""
    usual = preprocess(scanned(0))
    assert preprocess(scanned(22)).shape == usual.shape
    for times in (23, 100_000):
        with pytest.raises(InvalidImageError, match="32 scans"):
            preprocess(scanned(times))
    video = b"\xff\xda" * 1000
    assert np.array_equal(preprocess(scanned(0, after=video)), usual)
    thumbnails = b"Exif\x00\x00" + b"\xff\xda" * 1000
    assert np.array_equal(preprocess(scanned(0, exif=thumbnails)), usual)
    with pytest.raises(InvalidImageError, match="10000 markers"):
        preprocess(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_000 + video)
    assert preprocess(encode(noise().convert("CMYK"), "JPEG", progressive=True)).shape == usual.shape


def test_limit_itself_is_allowed() -> None:
    data = encode(noise(size=(30, 20)), "PNG")
    assert Preprocessor(SPEC, max_pixels=600)(data).shape == (32, 32, 3)
    with pytest.raises(ImageTooLargeError, match="limit is 599"):
        Preprocessor(SPEC, max_pixels=599)(data)


@pytest.mark.parametrize("shape", [(1, 5_000_000), (5_000_000, 1)])
def test_needle_is_refused_before_it_grows(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLargeError, match="too narrow"):
        Preprocessor(SPEC, max_pixels=10_000_000)(grey_png(*shape))


@pytest.mark.parametrize("resize", ["longest", "squash"])
@pytest.mark.parametrize("shape", [(1, 5_000_000), (5_000_000, 1)])
def test_needle_is_no_burden_where_nothing_is_cropped(shape: tuple[int, int], resize: str) -> None:
    spec = SPEC.model_copy(update={"resize": resize})
    assert Preprocessor(spec, max_pixels=10_000_000)(grey_png(*shape)).shape == (32, 32, 3)


@pytest.mark.parametrize("name", SEEDS)
def test_truncated_anywhere(name: str, preprocess: Preprocessor) -> None:
    whole = SEEDS[name]
    for length in range(1, len(whole), max(1, len(whole) // 97)):
        try:
            assert preprocess(whole[:length]).shape == (32, 32, 3)
        except ImageError:
            continue


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_half_a_picture_is_an_error(name: str, preprocess: Preprocessor) -> None:
    with pytest.raises(InvalidImageError, match="cannot be decoded"):
        preprocess(SEEDS[name][: len(SEEDS[name]) // 2])


@pytest.mark.parametrize("data", [SEEDS["PNG"][:60], b"\x89PNG\r\n\x1a\n" + bytes(40), SEEDS["JPEG"][:200]])
def test_what_a_decoder_trips_over_is_told_in_plain_words(data: bytes, preprocess: Preprocessor) -> None:
    with pytest.raises(InvalidImageError, match=r"decoded: it is truncated or broken$"):
        preprocess(data)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6
    ),
    at_the_front=st.booleans(),
)
def test_damaged_bytes_raise_nothing_but_our_errors(
    name: str, damage: list[tuple[float, int]], at_the_front: bool
) -> None:
    data = bytearray(SEEDS[name])
    reach = min(len(data), 200) if at_the_front else len(data)  # headers are where decoders trip
    for place, flip in damage:
        data[int(place * reach)] ^= flip
    try:
        pixels = Preprocessor(SPEC, max_pixels=1_000_000)(bytes(data))
    except ImageError:
        return
    assert pixels.shape == (32, 32, 3)


@settings(max_examples=100, deadline=None)
@given(
    prefix=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBPVP8 "]
    ),
    rest=st.binary(max_size=200),
)
def test_a_signature_and_rubbish(prefix: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        Preprocessor(SPEC, max_pixels=1_000_000)(prefix + rest)


def test_animation_gives_its_first_frame(preprocess: Preprocessor) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    for format_ in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if format_ == "WEBP" else {}
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
        assert corners(preprocess(data)) == [RED] * 4


UPRIGHT = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, format_: str, preprocess: Preprocessor) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format_, {})
    data = encode(quarters(), format_, exif=exif, **options)
    for turned, colours in (
        (preprocess, UPRIGHT[orientation]),
        (Preprocessor(SPEC, max_pixels=10**6, exif=False), UPRIGHT[1]),
    ):
        np.testing.assert_allclose(corners(turned(data)), colours, atol=3)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0rubbish",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\1\3\0\1\0\0\0\x63\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\0ab\0\0\0\0\0\0",
    ],
)
def test_broken_exif_leaves_the_picture_as_it_lies(exif: bytes, preprocess: Preprocessor) -> None:
    data = encode(quarters(), "JPEG", quality=100, subsampling=0, exif=exif)
    np.testing.assert_allclose(corners(preprocess(data)), UPRIGHT[1], atol=3)


def test_coloured_fill() -> None:
    spec = SPEC.model_copy(update={"resize": "longest", "fill": (10, 20, 30)})
    pixels = Preprocessor(spec, max_pixels=10**6)(encode(Image.new("L", (64, 16), 200), "PNG"))
    assert tuple(pixels[0, 0]) == tuple(pixels[31, 31]) == (10, 20, 30)
    assert (pixels[12:20] == 200).all()
    assert (pixels[:12] == (10, 20, 30)).all()


def test_longest_keeps_one_pixel_of_a_needle() -> None:
    spec = SPEC.model_copy(update={"resize": "longest"})
    pixels = Preprocessor(spec, max_pixels=10**6)(encode(Image.new("L", (1, 2000), 200), "PNG"))
    assert (pixels[:, 15] == 200).all()
    assert not pixels[:, :15].any()
    assert not pixels[:, 16:].any()


def test_threads_share_one_preprocessor(preprocess: Preprocessor) -> None:
    pictures = [encode(noise(seed), "PNG") for seed in range(8)]
    alone = [preprocess(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(preprocess, pictures * 8))
    for index, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[index % 8])

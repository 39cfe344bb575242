"""What ``fast`` may cost: cosine ≥ 0.999 and top-1 agreement ≥ 99.5 % against the exact path.

The pictures are the embedded model's own, four to twelve times as wide as it sees them, and photographs
whose decoded fraction just keeps the margin, keeps it twice over, and anything between.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.manifest import ImageSpec
from models.preprocess import Preprocessor
from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from models.shapes.pairs import PAIRS
from models.shapes.scenes import render, sample_scene

PHOTOS = sorted((Path(__file__).parents[3] / "shared" / "photos").glob("*.webp"))


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    registry = ModelRegistry(options=RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=2))
    yield registry.load("shapes")
    registry.close()


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def exact_and_fast(data: bytes, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    exact, fast = (Preprocessor(spec, max_pixels=2**26, fast=fast)(data) for fast in (False, True))
    return exact, fast


def both(model: LoadedModel, pictures: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Features by the exact path and by the fast one."""
    pairs = [exact_and_fast(picture, model.manifest.image) for picture in pictures]
    assert not any(np.array_equal(exact, fast) for exact, fast in pairs), "too small to be decoded fast"
    exact, fast = zip(*pairs, strict=True)
    return model.encode_pixels(exact), model.encode_pixels(fast)


def test_the_embedded_model_gives_the_same_answers(model: LoadedModel) -> None:
    scenes = [sample_scene(8_600_000_000 + n, colour=c, shape=s) for n, (c, s) in enumerate(PAIRS)]
    sides = np.random.default_rng(0).integers(256, 760, len(scenes)).tolist()
    pictures = [jpeg(render(scene, side)) for scene, side in zip(scenes, sides, strict=True)]
    exact, fast = both(model, pictures)
    classes = model.encode_texts([f"a {colour} {shape}" for colour, shape in PAIRS])
    assert (exact * fast).sum(axis=1).min() >= 0.999
    same = (exact @ classes.T).argmax(axis=1) == (fast @ classes.T).argmax(axis=1)
    assert same.mean() >= 0.995


def test_photographs_give_the_same_features(model: LoadedModel) -> None:
    if not PHOTOS:
        pytest.skip("the photographs in ../shared/photos are not here")
    pictures = []
    for number, path in enumerate(PHOTOS):
        photo = Image.open(path).convert("RGB")
        factor = (260, 400, 520, 1100)[number % 4] / min(photo.size)
        side = [round(length * factor) for length in photo.size]
        pictures.append(jpeg(photo.resize((side[0], side[1]), Image.Resampling.LANCZOS)))
    exact, fast = both(model, pictures)
    assert (exact * fast).sum(axis=1).min() >= 0.999


SPEC = ImageSpec(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def smooth(width: int, height: int) -> Image.Image:
    """Two gradients and a bright corner: smooth enough that any resize gives nearly the same."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    corner = 255 * ((x < 60) & (y < 40))
    return Image.fromarray(np.stack([x, y, corner], axis=-1).astype(np.uint8)).resize((width, height))


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(401, 275), (275, 403), (519, 519)])
def test_every_side_lies_where_it_lay(shape: tuple[int, int], orientation: int, resize: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    spec = SPEC.model_copy(update={"resize": resize})
    data = jpeg(smooth(*shape), exif=exif)
    exact, fast = (pixels.astype(int) for pixels in exact_and_fast(data, spec))
    assert 0 < np.abs(exact - fast).mean() < 0.6  # one pixel astray is more than 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_decoded_fast_too(mode: str) -> None:
    data = jpeg(smooth(401, 275).convert(mode))
    exact, fast = (pixels.astype(int) for pixels in exact_and_fast(data, SPEC))
    assert 0 < np.abs(exact - fast).mean() < 0.6


def test_what_is_not_large_or_no_jpeg_stays_exact() -> None:
    large = BytesIO()
    smooth(401, 275).save(large, "PNG")
    for data in (jpeg(smooth(127, 170)), large.getvalue()):  # 127 is less than twice twice 32
        np.testing.assert_array_equal(*exact_and_fast(data, SPEC))

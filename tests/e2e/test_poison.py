"""Hostile and odd pictures: each has its stated outcome, alone and in company, and none does harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.registry import LoadedModel
from tests.apps import base64, load_alone
from tests.pictures import (
    animated_gif,
    cmyk_jpeg,
    deep_png,
    encode,
    jpeg,
    png,
    png_header,
    rotated_jpeg,
    scene,
    truncated_jpeg,
)
from tests.server import Server, quantile, running_server
from tests.toy_models import write_toy_model

REFUSED = {
    "a truncated JPEG": (truncated_jpeg(), 422, "invalid_image"),
    "zero bytes": (b"", 415, "unsupported_image_format"),
    "a text file called .png": (b"This is a text file.\n" * 50, 415, "unsupported_image_format"),
    "a header of 30,000 × 30,000": (png_header(30_000, 30_000), 413, "image_too_large"),
    "a PNG without its pixels": (png_header(200, 200), 422, "invalid_image"),
    "a PNG cut in its header": (png()[:20], 422, "invalid_image"),
}
# Each with a plain picture that shows the same.
ACCEPTED = {
    "1 × 1": (png(6, 1, 1), encode(scene(6, 1, 1).resize((32, 32)))),
    "an animated GIF": (animated_gif(), encode(Image.open(BytesIO(animated_gif())).convert("RGB"))),
    "a 16-bit PNG": (deep_png(), None),
    "a CMYK JPEG": (cmyk_jpeg(), encode(Image.open(BytesIO(cmyk_jpeg())).convert("RGB"))),
    "an EXIF-rotated JPEG": (rotated_jpeg(5), encode(scene(5), "JPEG", quality=95)),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("poison")
    write_toy_model(home / "models")
    return home


@pytest.fixture(scope="module")
def model(home: Path) -> LoadedModel:
    return load_alone(home)


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with running_server(home) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url(), timeout=30) as client:
        yield client


def post(client: Any, data: bytes) -> Any:
    """As a form, with a name that promises a PNG whatever it is."""
    return client.post("/embed", files={"image": ("picture.png", data, "image/png")})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused(client: httpx.Client, name: str) -> None:
    data, status, code = REFUSED[name]
    answer = post(client, data)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_merely_odd_is_served_as_it_looks(
    client: httpx.Client, model: LoadedModel, name: str
) -> None:
    data, plain = ACCEPTED[name]
    answer = post(client, data)
    assert answer.status_code == 200, answer.text
    embedding = np.array(answer.json()["embeddings"][0]["embedding"])
    assert embedding @ model.encode_images([data])[0] > 0.99999
    if plain is not None:
        assert embedding @ model.encode_images([plain])[0] > 0.99


async def test_good_pictures_that_share_a_batch_with_bad_ones_are_answered(
    server: Server, model: LoadedModel
) -> None:
    good = [jpeg(seed, 60, 50) for seed in range(40)]
    expected = np.concatenate([model.encode_images([one]) for one in good])
    bad = [data for data, *_ in REFUSED.values()] * 6
    async with httpx.AsyncClient(base_url=server.url(), timeout=30) as client:
        tasks = [post(client, data) for pair in zip(good, bad, strict=False) for data in pair]
        tasks += [post(client, data) for data in good[len(bad) :]]
        answers = await asyncio.gather(*tasks)
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == len(good)
    assert set(codes) == {200, 413, 415, 422}
    served = [answer.json()["embeddings"][0]["embedding"] for answer in answers if answer.status_code == 200]
    assert (np.array(served) * expected).sum(axis=1).min() > 0.99999


def test_after_all_that_it_serves_at_full_speed(server: Server, client: httpx.Client) -> None:
    everything = [data for data, *_ in (*REFUSED.values(), *ACCEPTED.values())]
    before = [_seconds(client) for _ in range(60)]
    for data in everything * 8:
        post(client, data)
        body = {"inputs": [{"image": {"base64": base64(one)}} for one in everything]}
        assert client.post("/embed", json=body).status_code == 200
    after = [_seconds(client) for _ in range(60)]
    assert client.get("/health/ready").status_code == 200
    assert client.get("/health/live").status_code == 200
    assert quantile(after, 0.2) < 1.5 * quantile(before, 0.2) + 0.002
    assert server.metric("admitted_items") == 0


def _seconds(client: httpx.Client) -> float:
    answer = post(client, png(1))
    assert answer.status_code == 200
    return answer.elapsed.total_seconds()

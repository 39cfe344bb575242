"""From ``clipserve export ViT-B-32`` to HTTP: what is served is what open_clip gives, on real photographs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.server import Server, running_server

pytestmark = pytest.mark.e2e

PHOTOS = sorted((Path(__file__).parents[3] / "shared" / "photos").glob("*.webp"))
LABELS = ["a cat", "a dog", "a pizza", "a sailboat"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    if not PHOTOS:
        pytest.skip("the photographs are not beside this checkout")
    home = tmp_path_factory.mktemp("exported")
    command = [sys.executable, "-m", "service", "export", "ViT-B-32", "--name", "vit-b-32"]
    environment = os.environ | {"CLIPSERVE_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "RANDOM" in done.stderr
    return home


@pytest.fixture(scope="module", params=["onnxruntime", "auto"])
def server(home: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(home, models="vit-b-32", runtime=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def original(home: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of the photographs and of the labels by open_clip itself."""
    import open_clip
    import torch

    from models.architectures import Weights, load

    model = load("ViT-B-32", Weights(seed=0)).model.eval()
    _, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(photo)) for photo in PHOTOS])
        tokens = open_clip.get_tokenizer("ViT-B-32")([f"a photo of a {label}." for label in LABELS])
        pictures = model.encode_image(pixels, normalize=True).numpy()
        texts = model.encode_text(tokens, normalize=True).numpy()
    return pictures, texts


def test_embeddings_are_open_clips(
    server: Server, original: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    for photo, wanted in zip(PHOTOS, original[0], strict=True):
        headers = {"content-type": "image/webp", "accept": "application/x-npy"}
        answer = httpx.post(f"{server.url()}/embed", content=photo.read_bytes(), headers=headers, timeout=60)
        served = np.load(io.BytesIO(answer.content))[0]
        assert float(served @ wanted) >= 0.9999, photo.name


def test_similarities_are_open_clips(
    server: Server, original: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    pictures, texts = original
    for photo, similarities in zip(PHOTOS, pictures @ texts.T, strict=True):
        answer = httpx.post(
            f"{server.url()}/classify",
            params={"labels": LABELS},
            content=photo.read_bytes(),
            headers={"content-type": "image/webp"},
            timeout=60,
        )
        predictions = answer.json()["results"][0]["predictions"]
        served = {one["label"]: one["similarity"] for one in predictions}
        # In bf16 a cosine of 0.9999 allows features to be off by 0.014.
        assert [served[label] for label in LABELS] == pytest.approx(similarities.tolist(), abs=0.014)

"""The embedded model through a real server: what the README promises of the sample pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import shapes
from tests.server import Server, running_server

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*-*.*"))
LABELS = sorted({path.stem.replace("-", " ") for path in SAMPLES})

pytestmark = pytest.mark.skipif(
    not (Path(shapes.__file__).parent / "files" / "model.json").is_file() or not SAMPLES,
    reason="the embedded model has not been trained in this checkout: make train-shapes",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("shapes"), models="shapes", runtime="auto") as server:
        yield server


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_shows_what_it_is_called(server: Server, sample: Path) -> None:
    params: dict[str, Any] = {"labels": LABELS, "template_set": "shapes"}
    headers = {"content-type": f"image/{sample.suffix.removeprefix('.')}"}
    url = f"{server.url()}/classify"
    answer = httpx.post(url, params=params, content=sample.read_bytes(), headers=headers)
    assert answer.status_code == 200, answer.text
    best = answer.json()["results"][0]["predictions"][0]
    assert best["label"] == sample.stem.replace("-", " ")

"""What Weaviate's module ``multi2vec-clip`` sends, byte for byte, to a real server.

Its client is written in Go (``modules/multi2vec-clip/clients`` in weaviate/weaviate): ``json.Marshal`` of two
lists that may be nil, with a Content-Type in newer versions only.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.pictures import truncated_jpeg
from tests.server import Server, running_server

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*-*.*"))
LABELS = [path.stem.replace("-", " ") for path in SAMPLES]
GO = {"user-agent": "Go-http-client/1.1", "accept-encoding": "gzip"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("weaviate"), models="shapes", runtime="auto") as server:
        yield server


@pytest.fixture(params=[{}, {"content-type": "application/json"}], ids=["older", "newer"])
def module(server: Server, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url(), headers=GO | request.param) as client:
        yield client


def vectorize(
    module: httpx.Client, texts: list[str] | None, images: list[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    body = json.dumps({"texts": texts, "images": images}, separators=(",", ":"), ensure_ascii=False)
    answer = module.post("/vectorize", content=body.encode())
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"textVectors", "imageVectors"}
    return np.array(answer.json()["textVectors"], "<f4"), np.array(answer.json()["imageVectors"], "<f4")


def embedded(server: Server, *inputs: object) -> np.ndarray:
    accept = {"accept": "application/x-npy"}
    answer = httpx.post(f"{server.url()}/embed", json={"inputs": inputs}, headers=accept)
    return np.asarray(np.load(io.BytesIO(answer.content)))


def base64(picture: Path) -> str:
    return b64encode(picture.read_bytes()).decode()


def test_it_waits_until_the_server_is_ready(module: httpx.Client) -> None:
    for probe in ("live", "ready"):
        answer = module.get(f"/.well-known/{probe}")
        assert (answer.status_code, answer.content) == (204, b"")


def test_meta_tells_the_model(module: httpx.Client) -> None:
    answer = module.get("/meta")
    assert answer.status_code == 200
    assert answer.json().items() >= {"name": "shapes", "embedding_dim": 128}.items()


def test_pictures_find_their_words(server: Server, module: httpx.Client) -> None:
    texts, pictures = vectorize(module, [f"a {label}" for label in LABELS], [base64(one) for one in SAMPLES])
    assert texts.shape == pictures.shape == (len(LABELS), 128)
    assert (pictures @ texts.T).argmax(axis=1).tolist() == list(range(len(LABELS)))


def test_a_list_may_be_null_or_empty(server: Server, module: httpx.Client) -> None:
    texts, none = vectorize(module, ["a red circle", "ein Kreis ⭐"], None)
    assert texts.tobytes() == embedded(server, {"text": "a red circle"}, {"text": "ein Kreis ⭐"}).tobytes()
    assert none.shape == (0,)
    none, pictures = vectorize(module, None, [base64(SAMPLES[0])])
    assert pictures.tobytes() == embedded(server, {"image": {"base64": base64(SAMPLES[0])}}).tobytes()
    assert none.shape == (0,)
    for nothing in (None, []):
        assert [part.shape for part in vectorize(module, nothing, nothing)] == [(0,), (0,)]


def test_an_error_is_a_sentence_it_can_read(module: httpx.Client) -> None:
    broken = b64encode(truncated_jpeg()).decode()
    answer = module.post("/vectorize", content=json.dumps({"texts": None, "images": [broken]}))
    assert answer.status_code > 399
    assert answer.json()["error"].startswith("images[0]: ")

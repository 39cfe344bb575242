"""A server to be fuzzed, and whether it took harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from tests.apps import base64, load_alone
from tests.pictures import png
from tests.server import Server, running_server
from tests.toy_models import write_toy_model

PATIENCE = 20.0  # seconds; what takes longer counts as hanging


@contextmanager
def fuzzed_server(home: Path) -> Iterator[Server]:
    """A server that must have answered everything when the block ends, and must still be well."""
    write_toy_model(home / "models")
    with running_server(home, urls="on", request_timeout=2 * PATIENCE) as server:
        yield server
        _check_well(server, home)


def check(answer: httpx.Response) -> None:
    """Whatever was asked, the answer is a good one, or a refusal with a code and a reason."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["code"] != "internal_error"
        assert problem["detail"]
        assert "Traceback" not in answer.text


def _check_well(server: Server, home: Path) -> None:
    with httpx.Client(base_url=server.url(), timeout=PATIENCE) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200
        body = {"inputs": [{"image": {"base64": base64(png(7))}}, {"text": "a cat"}]}
        answer = client.post("/embed", json=body).json()
    model = load_alone(home)
    expected = np.concatenate([model.encode_images([png(7)]), model.encode_texts(["a cat"])])
    given = np.array([one["embedding"] for one in answer["embeddings"]])
    assert np.abs(given - expected).max() < 1e-5
    assert server.metric("admitted_items") == 0
    assert "Traceback" not in server.log

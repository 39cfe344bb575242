"""``POST /embed``: pictures and texts to unit vectors, in each form they may be asked for."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.registry import LoadedModel
from tests.apps import Client, base64, load_alone
from tests.pictures import png, truncated_jpeg
from tests.toy_models import CONTEXT, DIM

TEXTS = ["a cat", "a dog on a hill", ""]
MIXED = [
    {"text": TEXTS[0]},
    {"image": {"base64": base64(png(1))}},
    {"text": TEXTS[1]},
    {"image": {"base64": base64(png(2))}},
    {"text": TEXTS[2]},
]


@pytest.fixture
def reference(client: Client, tmp_path: Path) -> LoadedModel:
    """The model itself, without a server."""
    return load_alone(tmp_path)


@pytest.fixture
def expected(reference: LoadedModel) -> np.ndarray:
    """What ``MIXED`` must give."""
    texts, pictures = reference.encode_texts(TEXTS), reference.encode_images([png(1), png(2)])
    return np.stack([texts[0], pictures[0], texts[1], pictures[1], texts[2]])


async def embed(client: Client, inputs: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    answer = await client.post("/embed", json={"inputs": inputs} | options)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def vectors(answer: dict[str, Any]) -> np.ndarray:
    return np.array([entry["embedding"] for entry in answer["embeddings"]], np.float32)


async def test_texts_and_pictures_mix_and_keep_their_places(client: Client, expected: np.ndarray) -> None:
    answer = await embed(client, MIXED)
    assert answer.keys() == {"model", "dim", "embeddings"}
    assert (answer["model"], answer["dim"]) == ("toy", DIM)
    assert [entry["index"] for entry in answer["embeddings"]] == [0, 1, 2, 3, 4]
    assert [entry["kind"] for entry in answer["embeddings"]] == ["text", "image", "text", "image", "text"]
    assert not any(entry["truncated"] for entry in answer["embeddings"])
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors(answer), axis=1), 1, atol=1e-6)


async def test_base64_carries_the_same_bits_as_floats(client: Client) -> None:
    floats = vectors(await embed(client, MIXED))
    for entry, row in zip((await embed(client, MIXED, encoding="base64"))["embeddings"], floats, strict=True):
        assert isinstance(entry["embedding"], str)
        assert b64decode(entry["embedding"]) == row.astype("<f4").tobytes()


async def test_npy_is_one_array_of_the_same_bits(client: Client) -> None:
    answer = await client.post("/embed", json={"inputs": MIXED}, headers={"accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert (array.shape, array.dtype) == ((5, DIM), np.float32)
    np.testing.assert_array_equal(array, vectors(await embed(client, MIXED)))


async def test_a_form_gives_what_json_gives(client: Client, expected: np.ndarray) -> None:
    form = await client.post(
        "/embed",
        files=[
            ("text", (None, TEXTS[0])),
            ("image", ("one.png", png(1), "image/png")),
            ("text", (None, TEXTS[1])),
            ("image", ("two.png", png(2), "image/png")),
            ("text", (None, TEXTS[2])),
        ],
    )
    assert form.status_code == 200, form.text
    assert form.json() == await embed(client, MIXED)


async def test_a_bare_picture_gives_what_json_gives(client: Client) -> None:
    answer = await client.post(
        "/embed", content=png(1), headers={"content-type": "image/png"}, params={"encoding": "base64"}
    )
    assert answer.json() == await embed(client, [MIXED[1]], encoding="base64")


async def test_an_embedding_made_earlier_comes_back(client: Client) -> None:
    given = [3.0, 4.0] + [0.0] * (DIM - 2)
    answer = await embed(client, [{"image": {"embedding": given}}, {"text": "a cat"}])
    assert answer["embeddings"][0]["kind"] == "image"
    np.testing.assert_allclose(vectors(answer)[0][:3], [0.6, 0.8, 0], atol=1e-6)


async def test_a_long_text_is_cut_and_says_so_or_is_refused(client: Client, reference: LoadedModel) -> None:
    long = "word " * CONTEXT
    fits = "x" * (CONTEXT - 2)
    answer = await embed(client, [{"text": long}, {"text": fits}])
    assert [entry["truncated"] for entry in answer["embeddings"]] == [True, False]
    np.testing.assert_allclose(vectors(answer), reference.encode_texts([long, fits]), atol=1e-6)

    strict = await embed(client, [{"text": long}, {"text": fits}], truncate="error")
    assert strict["embeddings"][0] == {
        "index": 0,
        "kind": "text",
        "error": {
            "code": "text_too_long",
            "message": f"the text has more than the model's {CONTEXT} tokens, and truncate is 'error'",
        },
    }
    np.testing.assert_allclose(
        vectors({"embeddings": strict["embeddings"][1:]})[0], vectors(answer)[1], atol=1e-6
    )


async def test_bad_inputs_among_several_are_errors_in_their_places(client: Client) -> None:
    inputs = [
        {"text": "a cat"},
        {"image": {"base64": base64(truncated_jpeg())}},
        {"text": "x" * 5000},
        {"image": {"base64": "not base64"}},
        {"image": {"base64": base64(png(1))}},
    ]
    answer = await embed(client, inputs)
    assert [(entry["kind"], entry.get("error", {}).get("code")) for entry in answer["embeddings"]] == [
        ("text", None),
        ("image", "invalid_image"),
        ("text", "too_large"),
        ("image", "invalid_request"),
        ("image", None),
    ]
    alone = vectors(await embed(client, [inputs[0], inputs[4]]))
    np.testing.assert_allclose(answer["embeddings"][0]["embedding"], alone[0], atol=1e-6)
    np.testing.assert_allclose(answer["embeddings"][4]["embedding"], alone[1], atol=1e-6)


async def test_a_single_bad_input_fails_the_request(client: Client) -> None:
    answer = await client.post("/embed", json={"inputs": [{"image": {"base64": base64(b"GIF89a")}}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
    long = {"inputs": [{"text": "word " * CONTEXT}], "truncate": "error"}
    answer = await client.post("/embed", json=long)
    assert (answer.status_code, answer.json()["code"]) == (422, "text_too_long")


async def test_as_npy_any_bad_input_fails_the_request(client: Client) -> None:
    inputs = [{"text": "a cat"}, {"image": {"base64": base64(truncated_jpeg())}}]
    answer = await client.post("/embed", json={"inputs": inputs}, headers={"accept": "application/x-npy"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")


async def test_odd_texts_are_embedded_and_told_apart(client: Client) -> None:
    texts = ["猫", "кот", "🐈", "a\x00b", "עברית", "&amp;amp;", " ", "ﬁ"]
    answer = await embed(client, [{"text": text} for text in texts])
    assert np.isfinite(vectors(answer)).all()
    cat, kot, emoji = vectors(answer)[:3]
    assert max(cat @ kot, cat @ emoji, kot @ emoji) < 0.999

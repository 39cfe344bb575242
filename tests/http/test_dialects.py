"""Routes that speak as other services do: whatever is refused there is refused in their own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.keys import new_key
from tests.apps import Client, base64, serving
from tests.pictures import png, truncated_jpeg
from tests.toy_models import CONTEXT, DIM

KEY, ENTRY = new_key("shop")
PICTURE, BROKEN = base64(png()), base64(truncated_jpeg())

OPENAI, HUGGING_FACE, WEAVIATE = "/v1/embeddings", "/models/toy", "/vectorize"
GOOD: dict[str, dict[str, Any]] = {
    OPENAI: {"input": "a cat"},
    HUGGING_FACE: {"inputs": PICTURE, "parameters": {"candidate_labels": ["a", "b"]}},
    "/": {"inputs": PICTURE, "parameters": {"candidate_labels": ["a", "b"]}},
    WEAVIATE: {"texts": ["a cat"], "images": [PICTURE]},
}


def asked(labels: list[str], **more: Any) -> dict[str, Any]:
    return {"inputs": PICTURE, "parameters": {"candidate_labels": labels} | more}


REFUSALS: list[tuple[str, Any, int, str, str]] = [
    (OPENAI, b"{", 400, "malformed_body", "body: "),
    (OPENAI, {}, 422, "invalid_request", "input: Field required"),
    (OPENAI, {"input": []}, 422, "invalid_request", "input: "),
    (OPENAI, {"input": "a", "colour": 1}, 422, "invalid_request", "colour: "),
    (OPENAI, {"input": "a", "model": "gpt"}, 404, "unknown_model", "'gpt'"),
    (OPENAI, {"input": "a", "dimensions": 7}, 422, "invalid_request", f"dimensions: must be {DIM}"),
    (OPENAI, {"input": "a", "encoding_format": "hex"}, 422, "invalid_request", "encoding_format: "),
    (OPENAI, {"input": "x" * 5000}, 413, "too_large", "input[0]: has 5000 characters, at most 4096"),
    (OPENAI, {"input": [[1] * 5000]}, 413, "too_large", "input[0]: has 5000 tokens, at most 4096"),
    (
        OPENAI,
        {"input": ["a", "x" * CONTEXT], "truncate": "error"},
        422,
        "text_too_long",
        "input[1]: the text",
    ),
    (OPENAI, {"input": ["a"] * 129}, 413, "too_large", "input: 129 are given, at most 128"),
    (OPENAI, {"input": [[3], [99_999]]}, 422, "unknown_token", "input[1]: 99999 is none of the model's"),
    (OPENAI, {"input": [-1]}, 422, "unknown_token", "input[0]: -1"),
    (OPENAI, {"input": [1.5]}, 422, "invalid_request", "input[0]: "),
    (OPENAI, {"input": [True]}, 422, "invalid_request", "input[0]"),
    (
        OPENAI,
        {"input": {"text": "a", "image": "b"}},
        422,
        "invalid_request",
        "give exactly one of text, image",
    ),
    (OPENAI, {"input": ["a", {"image": "%"}]}, 422, "invalid_request", "input[1].image: is not base64"),
    (OPENAI, {"input": ["a", {"image": BROKEN}]}, 422, "invalid_image", "input[1]: "),
    (OPENAI, {"input": "hello", "modality": "image"}, 422, "invalid_request", "input[0]: is not base64"),
    (OPENAI, {"input": "http://a.com", "modality": "image"}, 422, "url_forbidden", "input[0]: "),
    ("/v1/chat/completions", {}, 404, "not_found", "POST /v1/chat/completions: "),
    (HUGGING_FACE, b"[", 400, "malformed_body", "body: "),
    (HUGGING_FACE, {"inputs": PICTURE}, 422, "invalid_request", "parameters: Field required"),
    (HUGGING_FACE, asked([]), 422, "invalid_labels", "labels: "),
    (HUGGING_FACE, asked(["a", "a"]), 422, "invalid_labels", "labels[1]: "),
    (HUGGING_FACE, asked(["a"], top_k=1), 422, "invalid_request", "parameters.top_k: "),
    (
        HUGGING_FACE,
        asked(["a"], hypothesis_template="a cat"),
        422,
        "invalid_request",
        "hypothesis_template: ",
    ),
    (HUGGING_FACE, GOOD["/"] | {"inputs": BROKEN}, 422, "invalid_image", "truncated"),
    (HUGGING_FACE, GOOD["/"] | {"inputs": "%"}, 422, "invalid_request", "inputs: is not base64"),
    ("/", GOOD["/"] | {"inputs": "http://a.com"}, 422, "url_forbidden", "inputs: "),
    ("/models/gpt", GOOD["/"], 404, "unknown_model", "'gpt'"),
    (WEAVIATE, b"", 400, "malformed_body", "body: "),
    (WEAVIATE, {"texts": "a"}, 422, "invalid_request", "texts: "),
    (WEAVIATE, {"texts": ["a"] * 65, "images": [PICTURE] * 64}, 413, "too_large", "texts, images: 129 are"),
    (WEAVIATE, {"texts": ["a", "x" * 5000]}, 413, "too_large", "texts[1]: has 5000 characters"),
    (WEAVIATE, {"images": [PICTURE, BROKEN]}, 422, "invalid_image", "images[1]: "),
    (WEAVIATE, {"texts": ["a"], "images": ["%"]}, 422, "invalid_request", "images[0]: is not base64"),
]


def told(path: str, answer: dict[str, Any]) -> tuple[str, str]:
    """The code and the sentence of an error, which must have the form that its client knows."""
    if path.startswith("/v1/"):
        assert answer.keys() == {"error"}
        error = answer["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error["code"], error["message"]
    assert answer.keys() == {"error", "code"}
    return answer["code"], answer["error"]


@pytest.mark.parametrize(("path", "body", "status", "code", "sentence"), REFUSALS)
async def test_a_refusal_names_the_field(
    client: Client, path: str, body: Any, status: int, code: str, sentence: str
) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = await client.post(path, headers={"content-type": "application/json"}, **sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    told_code, message = told(path, answer.json())
    assert told_code == code
    assert sentence in message


@pytest.mark.parametrize("path", GOOD)
async def test_a_key_is_needed_where_there_are_keys(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, api_keys=(ENTRY,), rate_limit=0.001, rate_burst=2) as client:
        refused = await client.post(path, json=GOOD[path])
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert told(path, refused.json())[0] == "unauthorized"

        bearer = {"authorization": f"Bearer {KEY}"}
        assert (await client.post(path, json=GOOD[path], headers=bearer)).status_code == 200
        while (limited := await client.post(path, json=GOOD[path], headers=bearer)).status_code == 200:
            pass
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) >= 1
        assert told(path, limited.json())[0] == "rate_limited"


@pytest.mark.parametrize("path", GOOD)
async def test_they_share_limits_places_deadlines_and_metrics(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, max_body_bytes=100_000) as client:
        big = await client.post(path, content=b"x" * 100_001, headers={"content-type": "application/json"})
        assert (big.status_code, told(path, big.json())[0]) == (413, "too_large")
        with client.services.admission.reserve() as places:
            places.grow_to(client.services.settings.max_queue)
            full = await client.post(path, json=GOOD[path])
        assert (full.status_code, told(path, full.json())[0]) == (429, "queue_full")
        assert full.headers["retry-after"]
        late = await client.post(path, json=GOOD[path], headers={"x-request-timeout-ms": "0"})
        assert (late.status_code, told(path, late.json())[0]) == (422, "invalid_request")
        assert (await client.post(path, json=GOOD[path])).status_code == 200
        route = path.replace("toy", "{name}")
        assert await client.metric("requests_total", route=route, code="200") == 1
        assert await client.metric("requests_total", route=route, code="413") == 1
        assert await client.metric("rejected_total", reason="queue_full") == 1


@pytest.mark.parametrize("path", GOOD)
async def test_an_unforeseen_failure_tells_nothing(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as client:

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(client.services.engine, "encode_images", fail)
        monkeypatch.setattr(client.services.engine, "encode_texts", fail)
        answer = await client.post(path, json=GOOD[path])
    assert answer.status_code == 500
    assert told(path, answer.json())[0] == "internal_error"
    assert "secret" not in answer.text


async def test_other_routes_keep_their_own_form(client: Client) -> None:
    for method, path in (("GET", "/nowhere"), ("POST", "/models/toy/load"), ("GET", "/models/gpt")):
        answer = await client.request(method, path)
        assert answer.headers["content-type"] == "application/problem+json", path


async def test_probes_and_meta_wait_for_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=False) as client:
        assert (await client.get("/.well-known/live")).status_code == 204
        assert (await client.get("/.well-known/ready")).status_code == 503
        meta = await client.get("/meta")
        assert (meta.status_code, told("/meta", meta.json())[0]) == (503, "unavailable")


async def test_probes_need_no_key(tmp_path: Path) -> None:
    async with serving(tmp_path, api_keys=(ENTRY,)) as client:
        assert (await client.get("/.well-known/ready")).status_code == 204
        assert (await client.get("/meta")).status_code == 401

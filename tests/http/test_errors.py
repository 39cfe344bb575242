"""Every row of the error table and every limit: status, code, and a sentence that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import errors
from tests.apps import Client, base64, serving
from tests.pictures import png, png_header, truncated_jpeg
from tests.problems import IMAGE, classify, refused
from tests.toy_models import CONTEXT


def embed(*inputs: dict[str, Any], **options: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/embed", {"json": {"inputs": list(inputs)} | options}


def raw(content: bytes, kind: str, path: str = "/classify?labels=a") -> tuple[str, str, dict[str, Any]]:
    return "POST", path, {"content": content, "headers": {"content-type": kind}}


def put(name: str = "pets", **body: Any) -> tuple[str, str, dict[str, Any]]:
    return "PUT", f"/classifiers/{name}", {"json": {"labels": ["a"]} | body}


def file(data: bytes) -> tuple[str, str, dict[str, Any]]:
    return classify(image={"base64": base64(data)})


OK_FILE = ("image", ("cat.png", png(), "image/png"))

CUT_OFF = b'--b\r\nContent-Disposition: form-data; name="labels"\r\n\r\na\r\n--b'

REFUSALS: list[tuple[tuple[str, str, dict[str, Any]], int, str, str]] = [
    # 400
    (raw(b"{", "application/json"), 400, "malformed_body", "body: "),
    (raw(b"", "application/json"), 400, "malformed_body", "body: "),
    (raw(b'{"labels": ["\xff"]}', "application/json"), 400, "malformed_body", "body: "),
    (raw(b'{"labels": ["\\ud800"]}', "application/json"), 400, "malformed_body", "hex escape"),
    (raw(b"x", "multipart/form-data"), 400, "malformed_body", "boundary"),
    (raw(CUT_OFF, "multipart/form-data; boundary=b"), 400, "malformed_body", "is cut off, its last boundary"),
    (raw(b"--b\r\n", "multipart/form-data; boundary=b"), 400, "malformed_body", "is cut off"),
    (raw(b"x", "multipart/form-data; boundary=b"), 400, "malformed_body", "body: not a multipart form"),
    (raw(b"--b\nx", "multipart/form-data; boundary=b"), 400, "malformed_body", "(RFC 7578)"),
    # 404
    (classify(model="gpt"), 404, "unknown_model", "'gpt' is loaded; loaded models: toy"),
    (classify(model="x" * 1000), 404, "unknown_model", f"model named '{'x' * 80}' is loaded"),
    (embed({"text": "a"}, model="gpt"), 404, "unknown_model", "'gpt'"),
    (("GET", "/models/gpt", {}), 404, "unknown_model", "'gpt'"),
    (put(model="gpt"), 404, "unknown_model", "'gpt'"),
    (classify(template_set="haiku"), 404, "unknown_template_set", "'haiku'; known: openai-imagenet"),
    (classify(labels=None, classifier="pets"), 404, "unknown_classifier", "'pets'"),
    (("GET", "/classifiers/pets", {}), 404, "unknown_classifier", "'pets'"),
    (("DELETE", "/classifiers/pets", {}), 404, "unknown_classifier", "'pets'"),
    (("GET", "/nothing/here", {}), 404, "not_found", "Not Found"),
    # 405
    (("GET", "/classify", {}), 405, "method_not_allowed", "Method Not Allowed"),
    (("POST", "/health/live", {}), 405, "method_not_allowed", "Method Not Allowed"),
    # 413
    (
        file(png_header(30_000, 30_000)),
        413,
        "image_too_large",
        "30000×30000 = 900000000 pixels; the limit is",
    ),
    (
        raw(b"--b\r\n" + b"A: b\r\n" * 9, "multipart/form-data; boundary=b"),
        413,
        "too_large",
        "body: a part of the form has more than 8 headers, or one of more than 4096 bytes",
    ),
    (raw(b"--b\r\nA: " + b"b" * 5000, "multipart/form-data; boundary=b"), 413, "too_large", "4096 bytes"),
    # 415
    (raw(b"x", "text/plain"), 415, "unsupported_body", "Content-Type: 'text/plain' is not accepted; use app"),
    (raw(b"x", ""), 415, "unsupported_body", "Content-Type: 'none'"),
    (("PUT", "/classifiers/pets", {"content": b"x"}), 415, "unsupported_body", "use application/json"),
    (file(b"hello, I am a text file called .png"), 415, "unsupported_image_format", "JPEG, PNG, WEBP"),
    (file(b""), 415, "unsupported_image_format", "0 bytes"),
    (raw(b"%PDF-1.7", "image/png"), 415, "unsupported_image_format", "JPEG, PNG"),
    # 422: pictures and texts
    (file(truncated_jpeg()), 422, "invalid_image", "truncated"),
    (file(png()[:60]), 422, "invalid_image", "cannot be decoded"),
    (embed({"text": "x" * CONTEXT}, truncate="error"), 422, "text_too_long", f"{CONTEXT} tokens"),
    (classify(image={"base64": "%"}), 422, "invalid_request", "image.base64: is not base64"),
    (classify(image={"url": "http://example.invalid"}), 422, "url_forbidden", "image.url: "),
    (
        classify(image={"base64": "a", "url": "b"}),
        422,
        "invalid_request",
        "image: give exactly one of base64",
    ),
    (classify(image={}), 422, "invalid_request", "image: give exactly one of base64"),
    (classify(image=None), 422, "invalid_request", "image, images: give exactly one"),
    (classify(images=[IMAGE]), 422, "invalid_request", "image, images: give exactly one"),
    (classify(image=None, images=[]), 422, "invalid_request", "images: "),
    (
        ("POST", "/classify", {"data": {"labels": "a"}, "files": [("x", b"y")]}),
        422,
        "invalid_request",
        "image: ",
    ),
    (
        ("POST", "/classify", {"files": [("image", (None, "text")), ("labels", (None, "a"))]}),
        422,
        "invalid_request",
        "image: must be a file, but its part of the form has no filename",
    ),
    (embed(), 422, "invalid_request", "inputs: "),
    (embed({}), 422, "invalid_request", "inputs[0]: give exactly one of text, image"),
    (embed({"text": "a"}, encoding="hex"), 422, "invalid_request", "encoding: "),
    (embed({"text": "a"}, truncate="start"), 422, "invalid_request", "truncate: "),
    (("POST", "/embed", {"files": [("x", b"y")]}), 422, "invalid_request", "x: "),
    (
        ("POST", "/embed", {"files": [("text", ("a.txt", b"a"))]}),
        422,
        "invalid_request",
        "text: must be text",
    ),
    # 422: labels, templates, options
    (classify(labels=[]), 422, "invalid_labels", "labels: at least one"),
    (classify(labels=["a", "b", "a"]), 422, "invalid_labels", "labels[2]: 'a' is the same as labels[0]"),
    (classify(labels=["a", "  "]), 422, "invalid_labels", "labels[1]: is blank"),
    (
        classify(labels=[{"label": "a", "prompts": [""]}]),
        422,
        "invalid_labels",
        "labels[0].prompts[0]: is blank",
    ),
    (classify(labels=["a" * 4097]), 422, "invalid_labels", "labels[0]: has 4097 characters, at most 4096"),
    (classify(labels=None), 422, "invalid_request", "labels, classifier: give exactly one"),
    (classify(classifier="pets"), 422, "invalid_request", "labels, classifier: give exactly one"),
    (classify(labels=[7]), 422, "invalid_request", "labels[0]: Input should be a valid string"),
    (classify(labels="a"), 422, "invalid_request", "labels: "),
    (
        classify(labels=["a", {"label": "b", "prompts": []}]),
        422,
        "invalid_request",
        "labels[1].prompts: List should have at least 1 item",
    ),
    (classify(labels=[{"label": "a", "str": 1}]), 422, "invalid_request", "labels[0]"),
    (
        classify(image={"embedding": ["x"]}),
        422,
        "invalid_request",
        "image.embedding[0]: Input should be a valid number",
    ),
    (classify(templates=[]), 422, "invalid_templates", "templates: at least one"),
    (classify(templates=["a photo"]), 422, "invalid_templates", "templates[0]: must contain {label}"),
    (classify(templates=["a {label}", "a {label}"]), 422, "invalid_templates", "templates[1]: the same"),
    (classify(templates=["{label}" + "a" * 4096]), 422, "invalid_templates", "templates[0]: has 4103 char"),
    (
        classify(templates=["a {label}"], template_set="photo"),
        422,
        "invalid_request",
        "template_set, templates: give at most one",
    ),
    (
        classify(labels=None, classifier="pets", template_set="photo"),
        422,
        "invalid_request",
        "classifier: a named one has its own templates",
    ),
    (classify(top_k=0), 422, "invalid_request", "top_k: "),
    (classify(top_k="many"), 422, "invalid_request", "top_k: "),
    (classify(activation="relu"), 422, "invalid_request", "activation: "),
    (classify(topk=5), 422, "invalid_request", "topk: "),
    (
        raw(png(), "image/png", "/classify?labels=a&top_k=1&top_k=2"),
        422,
        "invalid_request",
        "top_k: is given twice",
    ),
    (raw(png(), "image/png", "/classify"), 422, "invalid_request", "labels, classifier: give exactly one"),
    (raw(b"[]", "application/json"), 422, "invalid_request", "body: "),
    (put(name=".hidden"), 422, "invalid_classifier_name", "'.hidden'"),
    (put(name="a" * 65), 422, "invalid_classifier_name", "1 to 64"),
    (put(labels=[]), 422, "invalid_labels", "labels: at least one"),
    # 403: without an admin key nobody is an admin
    (("POST", "/models/toy/load", {}), 403, "forbidden", "CLIPSERVE_ADMIN_KEY"),
]


def _name(refusal: tuple[tuple[str, str, dict[str, Any]], int, str, str]) -> str:
    (method, path, _), status, code, says = refusal
    return f"{method} {path} {status} {code} {says}"


@pytest.mark.parametrize("refusal", REFUSALS, ids=_name)
async def test_bad_requests_are_refused_by_name(client: Client, refusal: Any) -> None:
    (method, path, request), status, code, says = refusal
    problem = await refused(client, method, path, **request)
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert says in problem["detail"]


async def test_a_405_names_what_is_allowed(client: Client) -> None:
    assert (await client.get("/classify")).headers["allow"] == "POST"


async def test_what_is_the_clients_fault_is_not_logged_as_the_servers(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for method, path in (("GET", "/nowhere"), ("GET", "/classify"), ("GET", "/models/gpt")):
        assert (await client.request(method, path)).status_code in {404, 405}
    nothing = {"embedding": base64(np.array([0x7FA00000] * 4, "<u4").tobytes())}  # signalling NaN
    assert (await client.post("/classify", json={"image": nothing, "labels": ["a"]})).status_code == 422
    assert not [one for one in caplog.records if one.name == "clipserve.errors"]


LIMITS: list[tuple[dict[str, Any], tuple[str, str, dict[str, Any]], str, str]] = [
    (
        {"max_body_bytes": 200},
        classify(labels=["a" * 300]),
        "too_large",
        "body: is larger than the limit of 200",
    ),
    (
        {"max_body_bytes": 200},
        ("POST", "/classify", {"files": [OK_FILE], "data": {"labels": "a" * 300}}),
        "too_large",
        "body: is larger than the limit of 200",
    ),
    ({"max_body_bytes": 99}, raw(png(), "image/png"), "too_large", "body: is larger than the limit of 99"),
    (
        {"max_image_bytes": 99},
        classify(),
        "too_large",
        f"image.base64: the picture has {len(png())} bytes, at most 99",
    ),
    ({"max_image_bytes": 99}, raw(png(), "image/png"), "too_large", "body: the picture has"),
    (
        {"max_image_bytes": 99},
        ("POST", "/classify", {"files": [OK_FILE], "data": {"labels": "a"}}),
        "too_large",
        "image: the picture has",
    ),
    ({"max_pixels": 1919}, classify(), "image_too_large", "48×40 = 1920 pixels; the limit is 1919"),
    (
        {"max_items": 2},
        classify(image=None, images=[IMAGE] * 3),
        "too_large",
        "images: 3 are given, at most 2 are allowed",
    ),
    (
        {"max_items": 2},
        ("POST", "/classify", {"files": [OK_FILE] * 3, "data": {"labels": "a"}}),
        "too_large",
        "body: the form has more than 2 files, which is the limit",
    ),
    (
        {"max_items": 9, "max_queue": 2},
        classify(image=None, images=[IMAGE] * 3),
        "too_large",
        "images: 3 are given, at most 2 are allowed",
    ),
    ({"max_items": 2}, embed(*[{"text": "a"}] * 3), "too_large", "inputs: 3 are given, at most 2"),
    ({"max_labels": 1}, classify(), "too_many_labels", "labels: 2 are given, at most 1"),
    (
        {"max_classifier_labels": 1},
        put(labels=["a", "b"]),
        "too_many_labels",
        "labels: 2 are given, at most 1",
    ),
    (
        {"max_prompts": 13},
        classify(template_set="openai-simple"),
        "too_large",
        "2 labels with template set 'openai-simple' make 14 prompts, at most 13",
    ),
    (
        {"max_text_length": 35},
        classify(labels=["a" * 12], templates=["{label} {label} {label}"]),
        "too_large",
        "templates: one has the label 3 times, and the longest label has 12 characters",
    ),
    (
        {"max_text_length": 35},
        put(labels=["a" * 12], templates=["{label} {label} {label}"]),
        "too_large",
        "in one prompt labels may have 35 characters",
    ),
    (
        {"max_text_length": 3},
        embed({"text": "four"}),
        "too_large",
        "inputs[0].text: has 4 characters, at most 3",
    ),
    (
        {"max_text_length": 3},
        ("POST", "/embed", {"files": [("text", (None, "four"))]}),
        "too_large",
        "text: has 4 characters, at most 3",
    ),
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit[0]} {limit[1][1]} {limit[3]}")
async def test_over_a_limit(tmp_path: Path, limit: Any) -> None:
    settings, (method, path, request), code, says = limit
    async with serving(tmp_path, **settings) as client:
        problem = await refused(client, method, path, **request)
        assert (problem["status"], problem["code"]) == (413, code), problem
        assert says in problem["detail"]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit[0]} {limit[1][1]} {limit[3]}")
async def test_within_the_default_limits_the_same_is_welcome(client: Client, limit: Any) -> None:
    _, (method, path, request), *_ = limit
    if path == "/classify" and "files" in request:
        request = {"data": {"labels": "a"}} | request
    answer = await client.request(method, path, **request)
    assert answer.status_code == 200, answer.text


async def test_a_form_has_so_many_fields_and_no_more(client: Client) -> None:
    """However few of its files it uses up."""
    labels = [("labels", (None, f"a{number}")) for number in range(20_000)]
    full = await client.post("/embed", files=labels)
    assert (full.status_code, full.json()["code"]) == (422, "invalid_request")
    problem = await refused(client, "POST", "/embed", files=[*labels, ("labels", (None, "b"))])
    assert (problem["status"], problem["code"]) == (413, "too_large")
    assert problem["detail"] == "body: the form has more than 20000 fields, which is the limit"


async def test_a_body_without_a_length_is_counted_as_it_comes(tmp_path: Path) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with serving(tmp_path, max_body_bytes=1000) as client:
        problem = await refused(
            client, "POST", "/classify", content=endless(), headers={"content-type": "application/json"}
        )
        assert (problem["status"], problem["code"]) == (413, "too_large")


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "", "1e3", str(10**9), "9" * 5000, "²"])
async def test_a_timeout_must_be_milliseconds_within_bounds(client: Client, given: str) -> None:
    method, path, request = classify()
    headers = {"X-Request-Timeout-Ms": given.encode("latin-1")}
    problem = await refused(client, method, path, **request, headers=headers)
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert "X-Request-Timeout-Ms: must be a whole number of milliseconds from 1 to 999999999" in str(problem)


@pytest.mark.parametrize(
    "charset", ["undefined", "idna", "unicode_escape", "base64", "utf-16", "no-such-one"]
)
async def test_a_form_is_utf8_whatever_its_charset(client: Client, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n\\ud800 caf\xc3\xa9\r\n--b--\r\n'
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = await client.post("/embed", content=body, headers={"content-type": kind})
    plain = await client.post("/embed", json={"inputs": [{"text": "\\ud800 café"}]})
    assert answer.status_code == plain.status_code == 200
    assert answer.json() == plain.json()


async def test_an_admin_key_must_match(tmp_path: Path) -> None:
    async with serving(tmp_path, admin_key="open-sesame-0123") as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic open-sesame-0123"}):
            answer = await client.post("/models/toy/load", headers=header)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = await client.post("/models/toy/load", headers={"authorization": "Bearer open-sesame-0123"})
        assert answer.status_code == 200


def test_every_code_of_the_table_is_stable() -> None:
    """Clients rely on these: a change here is a change of the interface."""
    table = {status.code: status.status for status in errors.STATUSES}
    assert (
        table.items()
        >= {
            "malformed_body": 400,
            "unauthorized": 401,
            "forbidden": 403,
            "unknown_model": 404,
            "unknown_template_set": 404,
            "unknown_classifier": 404,
            "too_large": 413,
            "image_too_large": 413,
            "too_many_labels": 413,
            "unsupported_body": 415,
            "unsupported_image_format": 415,
            "invalid_image": 422,
            "text_too_long": 422,
            "invalid_labels": 422,
            "invalid_templates": 422,
            "invalid_classifier_name": 422,
            "invalid_request": 422,
            "queue_full": 429,
            "unavailable": 503,
            "engine_stopped": 503,
            "deadline_exceeded": 504,
            "store_failed": 507,
        }.items()
    )

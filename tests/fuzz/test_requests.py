"""Every parser of requests, given what no sane client sends: bodies, forms, vectors, names, headers."""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.apps import base64
from tests.fuzz.servers import PATIENCE, check, fuzzed_server
from tests.pictures import png
from tests.server import Server
from tests.toy_models import DIM

pytestmark = pytest.mark.timeout(900)
PICTURE = png()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with fuzzed_server(tmp_path_factory.mktemp("requests")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url(), timeout=PATIENCE) as client:
        yield client


# JSON

KEYS = st.sampled_from(
    [
        *("image", "images", "inputs", "text", "base64", "url", "embedding", "labels", "label", "prompts"),
        *("classifier", "template_set", "templates", "activation", "top_k", "model", "encoding", "truncate"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers() | st.sampled_from([0, -1, 2**31, 2**63, 10**40]),
    st.floats(),
    st.text(),
    st.sampled_from(["toy", "photo", "softmax", "base64", "end", "{label}", "a {label}.", base64(PICTURE)]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
SOUND = {
    "/classify": {"images": [{"base64": base64(PICTURE)}], "labels": ["a", {"label": "b", "prompts": ["c"]}]},
    "/embed": {"inputs": [{"text": "a"}, {"image": {"base64": base64(PICTURE)}}], "encoding": "base64"},
}
PATHS = st.sampled_from(sorted(SOUND))


@given(path=PATHS, body=JSON, kept=st.sets(KEYS))
def test_json_of_any_shape(client: httpx.Client, path: str, body: Any, kept: set[str]) -> None:
    if isinstance(body, dict):
        body = {key: value for key, value in SOUND[path].items() if key in kept} | body
    check(client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


@given(path=PATHS, data=st.data())
def test_json_broken_byte_by_byte(client: httpx.Client, path: str, data: st.DataObject) -> None:
    body = bytearray(json.dumps(SOUND[path]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(client.post(path, content=bytes(body), headers={"content-type": "application/json"}))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"labels":' * 50_000, "9" * 100_000, "-" * 9, "\x00", "NaN"]
)
def test_json_that_is_deep_or_long(client: httpx.Client, text: str) -> None:
    answer = client.post("/classify", content=text, headers={"content-type": "application/json"})
    check(answer)
    assert answer.status_code in {400, 422}


# Forms

DISPOSITIONS = st.sampled_from(
    [
        *('form-data; name="image"; filename="a.png"', 'form-data; name="labels"', 'form-data; name="text"'),
        *('form-data; name="top_k"', 'form-data; name="model"', "form-data", 'form-data; filename="x"', ""),
        *('form-data; name=""', 'form-data; name="image"', "form-data; name=labels; name=text", "; ; =;"),
        *("form-data; name*=utf-8''labels", "attachment; name=\"labels\"; filename*=utf-8''%ff"),
    ]
)
HEADERS = st.sampled_from(
    [b"", b"Content-Type: image/png\r\n", b"x\r\n", b": \r\n", b"A: " + b"b" * 9000 + b"\r\n"]
)
CONTENTS = (
    st.sampled_from([PICTURE, b"a", b"1", b"toy", b"\xff\xfe", b"", b"\r\n--b", b"\r\n--b\r\n"]) | st.binary()
)
BOUNDARIES = st.sampled_from(["b", "b", "b", '"b"', "", "B", "b" * 300, "b c", "é"])


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(st.tuples(DISPOSITIONS, HEADERS, CONTENTS), max_size=6))
    body = b"".join(
        b"--b\r\nContent-Disposition: "
        + disposition.encode()
        + b"\r\n"
        + headers
        + b"\r\n"
        + content
        + b"\r\n"
        for disposition, headers, content in parts
    )
    body += b"--b--\r\n"
    if draw(st.booleans()):
        body = body[: draw(st.integers(0, len(body)))]
    return body.replace(b"\r\n", draw(st.sampled_from([b"\r\n"] * 4 + [b"\n", b"\r"])))


@given(path=PATHS, body=forms(), boundary=BOUNDARIES)
def test_forms_of_any_shape(client: httpx.Client, path: str, body: bytes, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}".encode()
    check(client.post(path, content=body, headers={"content-type": kind}))


# Vectors, base64 and addresses

TEXTS = st.text(st.characters(exclude_categories=()), max_size=60)
BASE64 = st.binary(max_size=80).map(lambda data: b64encode(data).decode()) | st.text(
    "AZaz09+/=-_ \n", max_size=40
)
VECTORS = st.one_of(
    st.lists(st.floats() | st.just(1e308), max_size=4),
    st.binary(min_size=4 * DIM, max_size=4 * DIM).map(base64),
    BASE64,
    BASE64.map("data:image/png;base64,{}".format),
)
PLACES = st.sampled_from(
    [
        *("http://127.0.0.1/a.png", "http://[::1]:80", "https://0x7f.1/", "http://169.254.169.254/latest"),
        *("http://a@127.0.0.1/", "file:///etc/passwd", "http:////127.1", "http://localhost.localdomain:22/"),
    ]
)


@given(vector=VECTORS)
def test_vectors_and_base64(client: httpx.Client, vector: Any) -> None:
    for source in ({"embedding": vector}, {"base64": vector}):
        body = json.dumps({"image": source, "labels": ["a"]})
        answer = client.post("/classify", content=body, headers={"content-type": "application/json"})
        check(answer)
        if answer.status_code == 200:
            [prediction] = answer.json()["results"][0]["predictions"]
            assert abs(prediction["similarity"]) < 1.0001


@given(url=TEXTS | PLACES | st.builds("{}{}".format, PLACES, TEXTS))
def test_addresses_that_lead_inside(client: httpx.Client, url: str) -> None:
    body = json.dumps({"image": {"url": url}, "labels": ["a"]})
    answer = client.post("/classify", content=body, headers={"content-type": "application/json"})
    check(answer)
    assert answer.status_code in {400, 422}


# Labels, templates and names


@given(
    labels=st.lists(TEXTS, max_size=4),
    template=TEXTS,
    top_k=st.integers(),
    prompts=st.lists(TEXTS, max_size=2),
)
def test_labels_and_templates(
    client: httpx.Client, labels: list[str], template: str, top_k: int, prompts: list[str]
) -> None:
    body = {
        "image": {"base64": base64(PICTURE)},
        "labels": [*labels, {"label": "own", "prompts": prompts}],
        "templates": [template + "{label}"],
        "top_k": top_k,
    }
    answer = client.post("/classify", content=json.dumps(body), headers={"content-type": "application/json"})
    check(answer)
    if answer.status_code == 200:
        best = answer.json()["results"][0]["predictions"]
        assert len(best) == min(top_k, len(labels) + 1)
        assert {one["label"] for one in best} <= {*labels, "own"}


@given(labels=st.lists(TEXTS, min_size=1, max_size=3), name=TEXTS, value=TEXTS)
def test_queries(client: httpx.Client, labels: list[str], name: str, value: str) -> None:
    pairs = [("labels", label) for label in labels] + [(name, value)]
    query = "&".join(f"{_quoted(one)}={_quoted(other)}" for one, other in pairs)
    check(client.post(f"/classify?{query}", content=PICTURE, headers={"content-type": "image/png"}))


@given(name=TEXTS | st.sampled_from(["..", ".", "a/../..", "%2e%2e%2f", "a\x00b", "CON", "a" * 300]))
def test_names_in_paths(client: httpx.Client, name: str) -> None:
    path = _quoted(name)
    answer = client.put(f"/classifiers/{path}", json={"labels": ["a"]})
    check(answer)
    if answer.status_code == 200:
        assert answer.json()["name"] == name
        assert client.delete(f"/classifiers/{path}").status_code == 204
    for route in ("classifiers", "models"):
        check(client.get(f"/{route}/{path}"))
    check(
        client.post(
            "/embed", json={"inputs": [{"text": "a"}], "model": name.encode("utf-8", "replace").decode()}
        )
    )


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


# Headers and bytes on the wire

VALUES = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0"))
NAMES = st.sampled_from(
    [
        *("accept", "authorization", "x-api-key", "x-request-id", "x-request-timeout-ms", "content-encoding"),
        *("accept-encoding", "if-none-match", "origin", "traceparent", "cookie", "range", "host", "upgrade"),
    ]
)
TIMEOUTS = st.sampled_from([b"1000", b"0", b"-1", b"1e9", b"\xb2", b"9" * 5000, b" 5000", b"0x10"])
KINDS = st.sampled_from(
    [b"application/json", b"image/png", b"x/+json", b";", b"multipart/form-data", b"image/*; a=b"]
)


@given(headers=st.dictionaries(NAMES, VALUES | TIMEOUTS, max_size=5), kind=KINDS | VALUES)
def test_headers(client: httpx.Client, headers: dict[str, bytes], kind: bytes) -> None:
    body = json.dumps(SOUND["/embed"])
    try:
        answer = client.post("/embed", content=body, headers=headers | {"content-type": kind})
    except httpx.LocalProtocolError:
        return  # what the client itself refuses to send
    if answer.headers.get("content-type", "").startswith("text/plain"):
        assert answer.status_code == 400, "uvicorn's own refusal"
    elif answer.status_code == 504:
        assert headers.get("x-request-timeout-ms", b"").strip().isdigit()
    else:
        check(answer)


PIECES = st.sampled_from(
    [
        *(
            b"POST /embed HTTP/1.1\r\n",
            b"GET / HTTP/1.0\r\n",
            b"GET http://x:99999/ HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n",
        ),
        *(
            b"Host: x\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Length: 99999999999999\r\n",
        ),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        ),
        *(
            b"Content-Type: application/json\r\n",
            b"\r\n",
            b"5\r\n{}   \r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
        ),
    ]
)


@given(pieces=st.lists(PIECES | st.binary(max_size=30), min_size=1, max_size=8))
def test_bytes_that_are_hardly_http(server: Server, pieces: list[bytes]) -> None:
    url = httpx.URL(server.url())
    with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(b"".join(pieces))
            connection.shutdown(socket.SHUT_WR)
            while answer := connection.recv(65536):
                assert b"Traceback" not in answer
                assert not answer.startswith(b"HTTP/1.1 5")
        except (ConnectionResetError, BrokenPipeError):
            pass  # it need not listen to the end

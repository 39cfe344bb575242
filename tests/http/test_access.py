"""Keys, rates, origins and headers; and that no answer tells of what lies inside the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from onnx import helper

from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER
from prompts.errors import StoreError
from service.keys import new_key
from tests.apps import Client, base64, read_metric, serving
from tests.pictures import png
from tests.toy_models import write_manifest, write_toy_model

SHOP, SHOP_ENTRY = new_key("shop")
BLOG, BLOG_ENTRY = new_key("blog")
ADMIN = "an admin key of some length"
BODY = {"image": {"base64": base64(png())}, "labels": ["a", "b"]}
# Every route there is: method, path, and whether it is open.
ROUTES = [
    ("GET", "/health/live", True),
    ("GET", "/health/ready", True),
    ("GET", "/metrics", True),
    ("GET", "/", True),
    ("GET", "/playground/app.js", True),
    ("POST", "/classify", False),
    ("POST", "/embed", False),
    ("GET", "/classifiers", False),
    ("PUT", "/classifiers/pets", False),
    ("GET", "/classifiers/pets", False),
    ("DELETE", "/classifiers/pets", False),
    ("GET", "/models", False),
    ("GET", "/models/toy", False),
    ("POST", "/models/toy/load", False),
    ("POST", "/models/toy/unload", False),
    ("GET", "/template-sets", False),
    ("POST", "/v1/embeddings", False),
    ("GET", "/v1/models", False),
    ("GET", "/v1/models/toy", False),
    ("POST", "/", False),
    ("POST", "/models/toy", False),
    ("POST", "/vectorize", False),
    ("GET", "/meta", False),
    ("GET", "/.well-known/live", True),
    ("GET", "/.well-known/ready", True),
    ("GET", "/docs", False),
    ("GET", "/redoc", False),
    ("GET", "/openapi.json", False),
    ("GET", "/nowhere", False),
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path, api_keys=(SHOP_ENTRY, BLOG_ENTRY), admin_key=ADMIN) as client:
        yield client


# Who gets in


@pytest.mark.parametrize(("method", "path", "is_open"), ROUTES)
async def test_without_a_key_only_probes_and_metrics_answer(
    keyed: Client, method: str, path: str, *, is_open: bool
) -> None:
    answer = await keyed.request(method, path)
    assert answer.is_success if is_open else (answer.status_code == 401)
    if not is_open:
        assert '"code":"unauthorized"' in answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]


async def test_the_list_of_routes_above_is_complete(keyed: Client) -> None:
    document = (await keyed.get("/openapi.json", headers=bearer(SHOP))).json()
    described = {(method.upper(), path) for path, ways in document["paths"].items() for method in ways}
    named = {path.replace("pets", "{name}").replace("toy", "{name}") for _, path, _ in ROUTES}
    assert {path for _, path in described} <= named


@pytest.mark.parametrize(
    "headers",
    [bearer(SHOP), bearer(BLOG), bearer(ADMIN), {"x-api-key": SHOP}, {"authorization": f"bearer  {SHOP} "}],
)
async def test_with_a_key_requests_pass(keyed: Client, headers: dict[str, str]) -> None:
    assert (await keyed.post("/classify", json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(SHOP[:-1]),
        bearer(SHOP + "x"),
        bearer(SHOP_ENTRY),
        bearer(SHOP_ENTRY.partition(":")[2]),
        {"authorization": SHOP},
        {"authorization": f"Basic {SHOP}"},
        {"x-api-key": f"Bearer {SHOP}"},
        {"cookie": f"key={SHOP}"},
    ],
)
async def test_with_anything_else_they_do_not(keyed: Client, headers: dict[str, str]) -> None:
    assert (await keyed.post("/classify", json=BODY, headers=headers)).status_code == 401
    assert (await keyed.post(f"/classify?key={SHOP}", json=BODY, headers=headers)).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/health/../classify", "//classify", "/metrics/../classify", "/classify/", "/health%2f..%2fclassify"],
)
async def test_no_spelling_of_a_path_gets_around_the_key(keyed: Client, path: str) -> None:
    request = keyed.build_request("POST", "/", json=BODY)
    request.url = request.url.copy_with(raw_path=path.encode())
    assert (await keyed.send(request)).status_code in {401, 404, 405}


async def test_without_keys_none_is_needed(client: Client) -> None:
    assert (await client.post("/classify", json=BODY)).status_code == 200
    assert (await client.post("/classify", json=BODY, headers=bearer("whatever"))).status_code == 200


async def test_a_request_without_a_key_is_refused_before_its_body_is_read_or_a_place_is_taken(
    keyed: Client,
) -> None:
    received: list[str] = []

    async def receive() -> dict[str, Any]:
        received.append("body")
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "raw_path": b"/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"1000000")],
    }
    transport = keyed._transport
    assert isinstance(transport, httpx.ASGITransport)
    settings = keyed.services.settings
    with keyed.services.admission.reserve() as places:
        places.grow_to(settings.max_queue)
        await transport.app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 401
    assert received == []


async def test_keys_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the blog\n{BLOG_ENTRY}\n")
    async with serving(tmp_path, api_keys=(SHOP_ENTRY,), api_keys_file=file) as client:
        for key in (SHOP, BLOG):
            assert (await client.get("/models", headers=bearer(key))).status_code == 200
        assert (await client.get("/models")).status_code == 401


async def test_the_log_says_whose_key_it_was_and_not_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipserve.access")
    async with serving(tmp_path, api_keys=(SHOP_ENTRY,), access_log=True) as client:
        await client.get("/models", headers=bearer(SHOP))
        await client.get("/health/live")
    records = [record for record in caplog.records if record.name == "clipserve.access"]
    assert [getattr(record, "key", None) for record in records] == ["shop", None]
    assert SHOP not in "".join(str(record.__dict__) for record in caplog.records)


# The admin


@pytest.mark.parametrize("given", [ADMIN, f"sha256:{hashlib.sha256(ADMIN.encode()).hexdigest()}"])
async def test_the_admin_key_may_be_set_plain_or_hashed(tmp_path: Path, given: str) -> None:
    async with serving(tmp_path, admin_key=given) as client:
        assert (await client.post("/models/toy/load", headers=bearer(ADMIN))).status_code == 200
        assert (await client.post("/models/toy/load", headers={"x-api-key": ADMIN})).status_code == 200
        assert (
            await client.post("/models/toy/load", headers=bearer("sha256:" + "0" * 64))
        ).status_code == 401


async def test_an_api_key_is_no_admin_key(keyed: Client) -> None:
    for verb in ("load", "unload"):
        answer = await keyed.post(f"/models/toy/{verb}", headers=bearer(SHOP))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await keyed.post("/models/toy/load", headers=bearer(ADMIN))).status_code == 200


# Metrics


async def test_metrics_may_take_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path, api_keys=(SHOP_ENTRY,), metrics_access="key") as client:
        assert (await client.get("/metrics")).status_code == 401
        assert "clipserve_" in (await client.get("/metrics", headers=bearer(SHOP))).text
        assert (await client.get("/health/ready")).status_code == 200


async def test_metrics_may_have_a_port_of_their_own(tmp_path: Path, free_port: int) -> None:
    async with serving(tmp_path, metrics_port=free_port) as client, httpx.AsyncClient() as scraper:
        assert (await client.get("/metrics")).status_code == 404
        await client.post("/classify", json=BODY)
        answer = await scraper.get(f"http://127.0.0.1:{free_port}/metrics")
        assert answer.status_code == 200
        assert read_metric(answer.text, "requests_total", route="/classify", code="200") == 1
        assert answer.headers["x-content-type-options"] == "nosniff"
        for method, path in (
            ("GET", "/classify"),
            ("POST", "/metrics"),
            ("GET", "/health/live"),
            ("GET", "/"),
        ):
            other = await scraper.request(method, f"http://127.0.0.1:{free_port}{path}")
            assert other.status_code == 404
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", free_port)


async def test_the_port_of_the_metrics_holds_few_connections(tmp_path: Path, free_port: int) -> None:
    async with serving(tmp_path, metrics_port=free_port):
        idle = [await asyncio.open_connection("127.0.0.1", free_port) for _ in range(16)]
        async with httpx.AsyncClient() as scraper:
            assert (await scraper.get(f"http://127.0.0.1:{free_port}/metrics")).status_code == 503
            for _, writer in idle:
                writer.close()
                await writer.wait_closed()
            async with asyncio.timeout(5):
                while (await scraper.get(f"http://127.0.0.1:{free_port}/metrics")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


@pytest.fixture
async def free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        return int(server.sockets[0].getsockname()[1])


# Rates


async def test_a_key_has_a_rate_of_items_and_others_are_not_slowed(tmp_path: Path) -> None:
    keys = (SHOP_ENTRY, BLOG_ENTRY)
    async with serving(tmp_path, api_keys=keys, admin_key=ADMIN, rate_limit=0.01, rate_burst=5) as client:
        four = {"images": [BODY["image"]] * 4, "labels": ["a"]}
        statuses = [
            (await client.post("/classify", json=body, headers=bearer(SHOP))).status_code
            for body in (BODY, four, BODY)
        ]
        assert statuses == [200, 200, 429]
        refused = await client.post("/classify", json=BODY, headers=bearer(SHOP))
        assert refused.json()["code"] == "rate_limited"
        assert 95 <= int(refused.headers["retry-after"]) <= 100
        assert await client.metric("rejected_total", reason="rate_limited") == 2
        for key in (BLOG, ADMIN):
            assert (await client.post("/classify", json=BODY, headers=bearer(key))).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_request_above_the_burst_is_answered_and_paid_for_afterwards(tmp_path: Path) -> None:
    async with serving(tmp_path, api_keys=(SHOP_ENTRY,), rate_limit=0.1, rate_burst=2) as client:
        many = {"inputs": [{"text": str(number)} for number in range(20)]}
        assert (await client.post("/embed", json=many, headers=bearer(SHOP))).status_code == 200
        refused = await client.get("/models", headers=bearer(SHOP))
        assert refused.status_code == 429
        assert 180 <= int(refused.headers["retry-after"]) <= 190


# Browsers


async def test_every_answer_has_security_headers(keyed: Client) -> None:
    answers = [
        await keyed.get("/health/live"),
        await keyed.get("/models"),
        await keyed.get("/nowhere", headers=bearer(SHOP)),
        await keyed.post("/classify", json=BODY, headers=bearer(SHOP)),
        await keyed.post("/classify", json={}, headers=bearer(SHOP)),
        await keyed.get("/docs", headers=bearer(SHOP)),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 200, 422, 200]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("referrer-policy") == ["no-referrer"]
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    assert all("default-src 'none'" in answer.headers["content-security-policy"] for answer in answers[:-1])
    assert "default-src" not in answers[-1].headers["content-security-policy"]


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}


async def test_other_origins_get_nothing_by_default(client: Client) -> None:
    origin = {"origin": "https://shop.test"}
    for answer in (
        await client.options("/classify", headers=origin | PREFLIGHT),
        await client.post("/classify", json=BODY, headers=origin),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_listed_origins_may_ask_and_read_errors(tmp_path: Path) -> None:
    origin = {"origin": "https://shop.test"}
    async with serving(tmp_path, api_keys=(SHOP_ENTRY,), cors_origins="https://shop.test") as client:
        preflight = await client.options("/classify", headers=origin | PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://shop.test"
        assert "X-API-Key" in preflight.headers["access-control-allow-headers"]
        for headers, status in ((bearer(SHOP), 200), ({}, 401)):
            answer = await client.post("/classify", json=BODY, headers=origin | headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://shop.test"
            assert "access-control-allow-credentials" not in answer.headers
        other = await client.post(
            "/classify", json=BODY, headers={"origin": "https://evil.test"} | bearer(SHOP)
        )
        assert "access-control-allow-origin" not in other.headers


# What no client learns


def assert_tells_nothing(text: str, home: Path) -> None:
    for secret in (str(home), str(Path(__file__).parent.parent.parent), "Traceback", "site-packages", ".py"):
        assert secret not in text


async def test_an_unforeseen_failure_tells_nothing_and_is_logged(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"cannot open {tmp_path}/secret.bin")

    monkeypatch.setattr(client.services.engine, "encode_images", fail)
    answer = await client.post("/classify", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert_tells_nothing(answer.text + str(answer.headers), tmp_path)
    assert f"{tmp_path}/secret.bin" in caplog.text


async def test_a_store_that_fails_names_no_folder_and_is_logged(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreError(
            f"{tmp_path}/classifiers/pets.classifier: cannot be written (No space left on device)"
        )

    monkeypatch.setattr(client.services.classifiers, "put", fail)
    answer = await client.put("/classifiers/pets", json={"labels": ["a"]})
    assert answer.status_code == 507
    assert answer.json()["detail"] == "pets.classifier: cannot be written (No space left on device)"
    assert f"{tmp_path}/classifiers" in caplog.text


def _not_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def _without_graph(folder: Path) -> None:
    (folder / IMAGE_GRAPH).unlink()


def _changed_graph(folder: Path) -> None:
    (folder / TEXT_GRAPH).write_bytes(b"changed")


def _graph_of_garbage(folder: Path) -> None:
    (folder / IMAGE_GRAPH).write_bytes(b"\x08garbage")
    write_manifest(folder, name="broken")


def _graph_with_an_unknown_operator(folder: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["pixels"], ["features"])
    pixels = helper.make_tensor_value_info("pixels", 2, ["n", 32, 32, 3])
    features = helper.make_tensor_value_info("features", 1, ["n", 48])
    model = helper.make_model(helper.make_graph([node], "g", [pixels], [features]))
    (folder / IMAGE_GRAPH).write_bytes(model.SerializeToString())
    write_manifest(folder, name="broken")


def _tokenizer_of_garbage(folder: Path) -> None:
    (folder / TOKENIZER).write_text(json.dumps({"model": {"type": "none"}}))
    write_manifest(folder, name="broken")


@pytest.mark.parametrize(
    "damage",
    [
        _not_json,
        _without_graph,
        _changed_graph,
        _graph_of_garbage,
        _graph_with_an_unknown_operator,
        _tokenizer_of_garbage,
    ],
)
async def test_a_broken_model_is_named_without_its_folder(tmp_path: Path, damage: Any) -> None:
    damage(write_toy_model(tmp_path / "models", name="broken"))
    async with serving(tmp_path, admin_key=ADMIN) as client:
        loading = await client.post("/models/broken/load", headers=bearer(ADMIN))
        assert (loading.status_code, loading.json()["code"]) == (503, "broken_model")
        for answer in (loading, await client.get("/models"), await client.get("/models/broken")):
            assert_tells_nothing(answer.text, tmp_path)
            assert "/" not in answer.json().get("detail", "")


async def test_keys_change_with_their_file_and_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.keys._SECONDS_BETWEEN_LOOKS", 0.0)
    file = tmp_path / "keys"
    file.write_text(SHOP_ENTRY)

    async def admitted() -> tuple[bool, bool]:
        answers = [await client.get("/models", headers=bearer(key)) for key in (SHOP, BLOG)]
        assert {answer.status_code for answer in answers} <= {200, 401}
        return answers[0].status_code == 200, answers[1].status_code == 200

    def replace(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(file)

    async with serving(tmp_path, api_keys_file=file) as client:
        assert await admitted() == (True, False)
        replace(f"{SHOP_ENTRY}\n{BLOG_ENTRY}\n")
        assert await admitted() == (True, True), "both count while clients change over"
        replace(BLOG_ENTRY)
        assert await admitted() == (False, True)
        for slip in ("", "# nobody", "shop:no hash", f"{SHOP_ENTRY}\n{SHOP_ENTRY}"):
            replace(slip)
            assert await admitted() == (False, True), slip
        file.unlink()
        assert await admitted() == (False, True)
        assert (await client.get("/models")).status_code == 401
        replace(SHOP_ENTRY)
        assert await admitted() == (True, False)
    complaints = [one.getMessage() for one in caplog.records if "keys stay as they were" in one.getMessage()]
    assert len(complaints) == 5, "each slip is told once, not at every request"
    assert SHOP not in caplog.text
    assert SHOP_ENTRY.partition(":")[2] not in caplog.text


async def test_a_new_key_is_no_new_share_of_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.keys._SECONDS_BETWEEN_LOOKS", 0.0)
    file = tmp_path / "keys"
    file.write_text(SHOP_ENTRY)
    async with serving(tmp_path, api_keys_file=file, rate_limit=0.001, rate_burst=2) as client:
        for _ in range(2):
            assert (await client.get("/models", headers=bearer(SHOP))).status_code == 200
        secret, entry = new_key("shop")
        file.write_text(f"{entry}\n# changed\n")
        assert (await client.get("/models", headers=bearer(secret))).status_code == 429
        assert (await client.get("/models", headers=bearer(SHOP))).status_code == 401

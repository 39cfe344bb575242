"""Servers that share a real Redis: what one has built the other serves, and neither needs Redis to serve."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from prompts.errors import StoreError
from service.cli import app
from service.settings import Settings
from service.state import open_store
from tests.apps import Client, base64, serving, until
from tests.pictures import png
from tests.programs import free_port
from tests.redis_server import RedisServer
from tests.toy_models import write_toy_model

IMAGE = {"base64": base64(png())}
LARGE = [f"thing {number}" for number in range(3000)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@asynccontextmanager
async def sharing(
    folder: Path, redis: RedisServer, name: str = "one", seed: int = 0, **settings: Any
) -> AsyncIterator[Client]:
    """A server with a home and a model of its own; the model is the same for the same seed."""
    home = folder / name
    if not home.exists():
        write_toy_model(home / "models", seed=seed)
    given = {"state_url": redis.url, "state_embeddings_ttl": 0} | settings
    async with serving(home, **given) as client:
        yield client


@pytest.fixture
async def pair(tmp_path: Path, redis: RedisServer) -> AsyncIterator[tuple[Client, Client]]:
    async with sharing(tmp_path, redis) as one, sharing(tmp_path, redis, "other") as other:
        yield one, other


Pair = tuple[Client, Client]


async def put(client: Client, labels: list[str], name: str = "pets") -> Any:
    return await client.put(f"/classifiers/{name}", json={"labels": labels})


async def classify(client: Client, **body: Any) -> Any:
    return await client.post("/classify", json={"image": IMAGE} | body)


async def ready(client: Client) -> tuple[int, str]:
    answer = await client.get("/health/ready")
    return answer.status_code, answer.json()["status"]


async def status_of(client: Client) -> int:
    return int((await classify(client, classifier="pets")).status_code)


async def count_of_labels(client: Client) -> int:
    return len((await classify(client, classifier="pets")).json()["results"][0]["predictions"])


async def eventually(look: Callable[[], Awaitable[object]], wanted: object, *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while await look() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def encoded(*clients: Client) -> float:
    """Texts that these servers have encoded, all together."""
    return sum([await client.metric("items_total", model="toy", kind="text") for client in clients])


async def finished(client: Client, name: str = "pets") -> None:
    await until(lambda: client.services.classifiers.describe(name)["state"] == "ready")


async def test_what_one_builds_the_other_serves_at_once(pair: Pair) -> None:
    one, other = pair
    for number in range(5):
        made = await put(one, ["cat", f"dog {number}"], f"pets-{number}")
        assert made.status_code == 200
        answer = await classify(other, classifier=f"pets-{number}")
        assert answer.status_code == 200
        assert answer.json() == (await classify(one, classifier=f"pets-{number}")).json()
        assert (await other.get(f"/classifiers/pets-{number}")).json() == made.json()
    assert await encoded(other) == 0


async def test_changes_and_deletions_are_seen_within_a_second(pair: Pair) -> None:
    one, other = pair
    await put(one, ["cat", "dog"])
    await classify(other, classifier="pets")
    await put(one, ["red", "green", "blue"])
    await eventually(lambda: count_of_labels(other), 3, seconds=1)
    assert (await other.delete("/classifiers/pets")).status_code == 204
    await eventually(lambda: status_of(one), 404, seconds=1)
    assert (await classify(other, classifier="pets")).status_code == 404


@pytest.mark.parametrize("labels", [["cat", "dog", "horse"], LARGE], ids=["small", "large"])
async def test_of_two_that_build_the_same_one_does_the_work(pair: Pair, labels: list[str]) -> None:
    answers = await asyncio.gather(*(put(client, labels) for client in pair))
    assert {answer.status_code for answer in answers} <= {200, 202}
    for client in pair:
        await finished(client)
    assert await encoded(*pair) == len(labels)
    first, second = [(await classify(client, classifier="pets", top_k=2)).json() for client in pair]
    assert first == second


async def test_progress_is_seen_everywhere(pair: Pair) -> None:
    one, other = pair
    assert (await put(one, LARGE)).json()["state"] == "building"
    described = (await other.get("/classifiers/pets")).json()
    assert (described["state"], described["total"]) == ("building", len(LARGE))
    assert (await classify(other, classifier="pets")).status_code == 503
    await finished(other)
    assert await encoded(other) == 0


async def test_another_goes_on_where_one_was_stopped(tmp_path: Path, redis: RedisServer) -> None:
    async with sharing(tmp_path, redis, "other") as other:
        async with sharing(tmp_path, redis) as one:
            await put(one, LARGE)
            await until(lambda: other.services.classifiers.describe("pets")["done"] > 0 if seen(other) else 0)
            assert one.services.classifiers.describe("pets")["state"] in {"building", "ready"}
        await finished(other)
        # None at all where the first one was quick enough to finish while it was being stopped.
        assert await encoded(other) < len(LARGE), "the checkpoint's rows are not encoded again"
        by_labels = (await classify(other, labels=LARGE, top_k=3)).json()
        assert (await classify(other, classifier="pets", top_k=3)).json()["results"] == by_labels["results"]


def seen(client: Client) -> bool:
    return any(one["name"] == "pets" for one in client.services.classifiers.list())


async def test_a_build_that_is_deleted_elsewhere_ends(pair: Pair) -> None:
    one, other = pair
    await put(one, LARGE)
    await other.get("/classifiers/pets")
    assert (await other.delete("/classifiers/pets")).status_code == 204
    await eventually(lambda: status_of(one), 404, seconds=5)
    await asyncio.sleep(0.6)  # two more looks at the store
    for client in pair:
        assert (await client.get("/classifiers")).json() == {"classifiers": []}


async def test_redis_gone_serving_goes_on_and_back_again(pair: Pair, redis: RedisServer) -> None:
    one, other = pair
    await put(one, ["cat", "dog"])
    before = (await classify(other, classifier="pets")).json()
    assert (await ready(other), await other.metric("store_reachable")) == ((200, "ready"), 1)
    redis.stop()
    refused = await put(other, ["cat", "cow"])
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert "retry-after" in refused.headers
    assert (await other.delete("/classifiers/pets")).status_code == 503
    assert (await classify(other, classifier="unknown")).status_code == 503
    await eventually(lambda: ready(other), (200, "degraded"), seconds=3)
    assert (await other.get("/health/ready")).json()["reasons"] == ["Redis cannot be reached"]
    assert await other.metric("store_reachable") == 0
    assert (await classify(other, classifier="pets")).json() == before
    assert (await classify(other, labels=["fish"])).status_code == 200
    redis.start()
    await eventually(lambda: ready(other), (200, "ready"), seconds=5)
    assert (await classify(other, classifier="pets")).json() == before
    assert (await put(other, ["cat", "cow"])).status_code == 200


async def test_a_large_one_outlasts_an_outage(pair: Pair, redis: RedisServer) -> None:
    one, other = pair
    await put(one, LARGE)
    redis.stop()
    await until(lambda: one.services.classifiers.describe("pets")["done"] == len(LARGE))
    redis.start()
    await finished(one)
    await eventually(lambda: status_of(other), 200, seconds=5)


async def test_embeddings_are_shared(tmp_path: Path, redis: RedisServer) -> None:
    ttl = {"state_embeddings_ttl": 60}
    async with sharing(tmp_path, redis, **ttl) as one, sharing(tmp_path, redis, "other", **ttl) as other:
        first = (await classify(one, labels=["cat", "dog"])).json()
        with redis.client() as client:
            await until(lambda: client.dbsize() and len(client.keys("clipserve:embedding:*")) == 2)
        assert (await classify(other, labels=["dog", "cat"])).json() == first
        assert await encoded(other) == 0
        assert await other.metric("cache_events_total", cache="shared", event="hit") == 2
        redis.stop()
        assert (await classify(other, labels=["dog", "horse"])).status_code == 200
        assert await encoded(other) == 1


async def test_a_redis_that_hangs_delays_no_known_classifier_and_others_once(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with sharing(tmp_path, redis, state_embeddings_ttl=60) as client:
        await put(client, ["cat", "dog"])
        await classify(client, classifier="pets")
        with redis.hanging():
            seconds = []
            for body in ({"labels": ["fish"]}, {"labels": ["bird"]}, *[{"classifier": "pets"}] * 20):
                began = time.monotonic()
                assert (await classify(client, **body)).status_code == 200
                seconds.append(time.monotonic() - began)
        assert seconds[0] < 2
        assert max(seconds[1:]) < 0.25, "after one attempt Redis is left alone"


async def test_with_the_next_version_of_the_model_elsewhere_the_old_one_is_served_here(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with sharing(tmp_path, redis) as old:
        await put(old, ["cat", "dog"])
        before = (await classify(old, classifier="pets")).json()
        async with sharing(tmp_path, redis, "next", seed=9) as new:
            await finished(new)
            renewed = (await classify(new, classifier="pets")).json()
            assert renewed["results"] == (await classify(new, labels=["cat", "dog"])).json()["results"]
            assert renewed["results"] != before["results"]
            store, digest = old.services.classifiers.store, new.services.engine.model("toy").digest
            await until(lambda: store.get("pets").model_digest == digest)
            assert (await classify(old, classifier="pets")).json() == before


async def test_it_starts_without_redis(tmp_path: Path, redis: RedisServer) -> None:
    declared = tmp_path / "declared"
    declared.mkdir()
    (declared / "pets.json").write_text('{"labels": ["cat", "dog"]}')
    redis.stop()
    async with sharing(tmp_path, redis, declared_classifiers_dir=declared) as client:
        assert await ready(client) == (200, "degraded")
        assert (await classify(client, classifier="pets")).status_code == 200
        assert (await classify(client, classifier="unknown")).status_code == 503
        redis.start()
        await finished(client)
        assert await ready(client) == (200, "ready")
        async with sharing(tmp_path, redis, "other") as other:
            assert (await classify(other, classifier="pets")).status_code == 200


def test_an_address_of_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="redis://, rediss:// or unix://"):
        Settings(state_url="http://state")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "prompts.redis_store", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StoreError, match=r"clipserve\[redis\]"):
        open_store(Settings(state_url="redis://state"))


def test_the_password_of_redis_is_not_shown() -> None:
    shown = CliRunner().invoke(
        app, ["config", "--json"], env={"CLIPSERVE_STATE_URL": "redis://:hidden@state"}
    )
    assert shown.exit_code == 0
    assert "STATE_URL" in shown.output.upper()
    assert "hidden" not in shown.output


@pytest.mark.parametrize("state", ["refused", "wrong password", "no such user"])
async def test_nothing_that_is_shown_has_the_password_of_redis(
    tmp_path: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis.client() as admin:
        admin.config_set("requirepass", "the right one")
    user = "nobody" if state == "no such user" else "default"
    port = free_port() if state == "refused" else redis.port
    url = f"redis://{user}:hunter2@127.0.0.1:{port}/0"
    async with sharing(tmp_path, redis, state_url=url, state_embeddings_ttl=60, access_log=True) as client:
        answer = await client.get("/health/ready")
        assert answer.json()["status"] == "degraded"
        shown = [answer.text, (await classify(client, labels=["a", "b"])).text]
        shown += [(await client.get(path)).text for path in ("/health/live", "/metrics", "/classifiers")]
        shown.append((await put(client, ["a", "b"])).text)
        shown.append(repr(client.services.settings) + client.services.settings.model_dump_json())
    shown += [str(vars(record)) for record in caplog.records]
    assert not any("hunter2" in one for one in shown)


@pytest.mark.parametrize("url", ["redis://:hunter2/x@127.0.0.1:6379", "redis://:a@127.0.0.1:hunter2/0"])
def test_nor_has_the_refusal_of_a_url(url: str) -> None:
    with pytest.raises(StoreError, match="%XX") as caught:
        open_store(Settings(state_url=url))  # type: ignore[arg-type]
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))

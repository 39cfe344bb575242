"""Three real replicas behind the real HAProxy, under constant load: nothing that happens to one is felt."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.apps import base64
from tests.haproxy import HAProxy, running_haproxy
from tests.load import Load, steady_load
from tests.pictures import png
from tests.programs import free_port
from tests.prometheus import running_prometheus
from tests.redis_server import RedisServer
from tests.server import Server
from tests.toy_models import write_toy_model

pytestmark = pytest.mark.e2e

DOCKER = Path(__file__).parents[2] / "docker"
RATE = 40.0
IMAGE = {"base64": base64(png(1, 160, 120))}
BY_LABELS = ("/classify", {"json": {"image": IMAGE, "labels": ["cat", "dog"]}})
BY_NAME = ("/classify", {"json": {"image": IMAGE, "classifier": "pets"}})
UPLOAD = ("/classify", {"files": {"image": png(1, 160, 120)}, "data": {"labels": ["red", "green"]}})
EMBED = ("/embed", {"json": {"inputs": [{"text": "a cat"}, {"image": IMAGE}]}})
REQUESTS = [BY_LABELS, BY_NAME, UPLOAD, EMBED]


class Replicas:
    """Servers with one model folder, one Redis, and a port each that they keep when started again."""

    def __init__(self, folder: Path, redis: RedisServer, count: int) -> None:
        self._folder = folder
        self._redis = redis
        self.ports = [free_port() for _ in range(count)]
        write_toy_model(folder / "models", name="toy")
        self.servers = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> Server:
        home = self._folder / f"replica-{number}"
        home.mkdir(exist_ok=True)
        return Server(
            home,
            port=self.ports[number],
            models_dir=self._folder / "models",
            state_url=self._redis.url,
            drain_seconds=2.5,
            inference_threads=1,
        )

    def restart(self, number: int) -> int:
        """As a deployment does it; the exit status of the old one."""
        process = self.servers[number].process
        process.terminate()
        status = process.wait(timeout=60)
        self.start(number)
        return status

    def start(self, number: int) -> None:
        self.servers[number].kill()
        self.servers[number] = self._start(number)
        self.servers[number].wait_until_ready()

    def kill_one(self, number: int) -> None:
        """``kill -9``."""
        process = self.servers[number].process
        process.kill()
        process.wait()

    def kill(self) -> None:
        with ExitStack() as stack:
            for server in self.servers:
                stack.callback(server.kill)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def replicas(tmp_path: Path, redis: RedisServer) -> Iterator[Replicas]:
    replicas = Replicas(tmp_path, redis, 3)
    yield replicas
    replicas.kill()


@pytest.fixture
def haproxy(tmp_path: Path, replicas: Replicas) -> Iterator[HAProxy]:
    with ExitStack() as stack:
        haproxy = stack.enter_context(running_haproxy(tmp_path, replicas.ports))
        for number, server in enumerate(replicas.servers):
            server.wait_until_ready()
            wait(lambda number=number: haproxy.status(number) == "UP")
        made = httpx.put(f"{haproxy.url}/classifiers/pets", json={"labels": ["cat", "dog", "horse"]})
        assert made.status_code == 200
        yield haproxy


def wait(condition: Callable[[], object], *, seconds: float = 20.0) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


async def wait_aside(condition: Callable[[], object], *, seconds: float = 20.0) -> float:
    return await asyncio.to_thread(wait, condition, seconds=seconds)


@asynccontextmanager
async def load_on(haproxy: HAProxy) -> AsyncIterator[Load]:
    async with steady_load(haproxy.url, REQUESTS, rate=RATE) as load:
        await asyncio.sleep(1)
        yield load
        await asyncio.sleep(1)


def report(capsys: pytest.CaptureFixture[str], **figures: object) -> None:
    with capsys.disabled():
        print("\n" + json.dumps(figures))


async def test_a_rolling_restart_loses_nothing(
    haproxy: HAProxy, replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    async with load_on(haproxy) as load:
        for number in range(3):
            assert await asyncio.to_thread(replicas.restart, number) == 0
            await wait_aside(lambda number=number: haproxy.status(number) == "UP")
    report(capsys, rolling_restart=load.answered, failed=len(load.failures), slowest=round(load.slowest, 3))
    assert load.failures == []
    assert load.answered > 3 * RATE
    for server in replicas.servers:
        assert server.metric("requests_total", route="/classify", code="200") > 0


async def test_a_killed_replica_loses_nothing_and_is_left_at_once(
    haproxy: HAProxy, replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    left = []
    async with load_on(haproxy) as load:
        for number in range(3):
            replicas.kill_one(number)
            left.append(await wait_aside(lambda number=number: haproxy.status(number).startswith("DOWN")))
            await asyncio.to_thread(replicas.start, number)
            await wait_aside(lambda number=number: haproxy.status(number) == "UP")
    report(
        capsys, killed=load.answered, failed=len(load.failures), left_after=[round(one, 2) for one in left]
    )
    assert load.failures == []
    assert max(left) < 2


async def test_redis_stopped_and_started_loses_nothing(
    haproxy: HAProxy, replicas: Replicas, redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def statuses() -> set[str]:
        answers = [httpx.get(f"{server.url()}/health/ready") for server in replicas.servers]
        return {answer.json()["status"] for answer in answers}

    def put() -> httpx.Response:
        return httpx.put(f"{haproxy.url}/classifiers/more", json={"labels": ["cup"]})

    async with load_on(haproxy) as load:
        for _ in range(2):
            await asyncio.to_thread(redis.stop)
            noticed = await wait_aside(lambda: statuses() == {"degraded"})
            assert [haproxy.status(number) for number in range(3)] == ["UP"] * 3
            refused = await asyncio.to_thread(put)
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            await asyncio.sleep(1)
            await asyncio.to_thread(redis.start)
            recovered = await wait_aside(lambda: statuses() == {"ready"})
    report(
        capsys,
        redis_stopped=load.answered,
        failed=len(load.failures),
        noticed=round(noticed, 2),
        recovered=round(recovered, 2),
    )
    assert load.failures == []
    assert (await asyncio.to_thread(put)).status_code == 200


async def test_prometheus_answers_every_question_of_dashboard_and_alerts(
    tmp_path: Path, haproxy: HAProxy, replicas: Replicas
) -> None:
    targets = {"clipserve": replicas.ports, "haproxy": [haproxy.stats_port]}
    with ExitStack() as stack:
        ask = stack.enter_context(running_prometheus(tmp_path, targets))
        async with load_on(haproxy):
            await wait_aside(lambda: all_up(ask, 4), seconds=30)
            await asyncio.sleep(6)
        assert {rule["health"] for group in ask("rules")["groups"] for rule in group["rules"]} <= {
            "ok",
            "unknown",
        }
        silent = {query for query in dashboard_queries() if not ask("query", query=query)["result"]}
        unseen = r"rejected|evict|code!~"  # nothing was refused, failed or thrown away
        assert [query for query in silent if not re.search(unseen, query)] == []
        [rules] = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]
        firing = [rule["alert"] for rule in rules["rules"] if ask("query", query=rule["expr"])["result"]]
        assert firing == []
        replicas.kill_one(0)
        await wait_aside(lambda: ask("query", query='up{job="clipserve"} == 0')["result"])


def all_up(ask: Callable[..., Any], count: int) -> bool:
    targets = ask("targets")["activeTargets"]
    return [target["health"] for target in targets] == ["up"] * count


def dashboard_queries() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana/dashboards/clipserve.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "10s")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]

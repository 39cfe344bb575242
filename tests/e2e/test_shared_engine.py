"""Fronts and one engine process: one server to whoever looks at it, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.apps import base64, load_alone
from tests.pictures import jpeg, png, truncated_jpeg
from tests.server import Server, is_alive, running_server, started_server, wait_until
from tests.toy_models import write_toy_model

BODY = {"image": {"base64": base64(png())}, "labels": ["cat", "dog"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_toy_model(tmp_path / "models")
    return tmp_path


def shared_memory() -> set[str]:
    """Names that could outlive whoever made them."""
    return {file.name for file in Path("/dev/shm").iterdir()}


def get(server: Server, path: str) -> httpx.Response:
    return httpx.get(f"{server.url()}{path}")


def is_ready(server: Server) -> bool:
    return get(server, "/health/ready").status_code == 200


def nothing_waits(server: Server) -> bool:
    """Gauges of another process are up to a second old."""
    return server.metric("queue_items", model="toy", encoder="image", lane="interactive") == 0


def has_said_ready(server: Server, times: int) -> bool:
    return server.log.count('"ready"') == times


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@dataclass
class Seen:
    """What clients got: codes of answers, and how often each had its connection cut."""

    answers: Counter[str] = field(default_factory=Counter)
    cut: Counter[int] = field(default_factory=Counter)

    async def more(self, count: int, *, code: str = "ok") -> None:
        """Wait for so many more answers."""
        wanted = self.answers[code] + count
        await until(lambda: self.answers[code] >= wanted)


@contextlib.asynccontextmanager
async def load(url: str, *, clients: int) -> AsyncIterator[Seen]:
    """Clients with a connection each, who ask until the block ends or nobody listens any more."""
    seen, context, over = Seen(), ssl.create_default_context(), asyncio.Event()

    async def ask(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=context) as client:
            while not over.is_set():
                try:
                    answer = await client.post("/classify", json=BODY)
                except httpx.ConnectError:
                    return
                except httpx.HTTPError:
                    seen.cut[number] += 1
                else:
                    code = "ok" if answer.status_code == 200 else answer.json()["code"]
                    seen.answers[code] += 1
                    await asyncio.sleep(0 if code == "ok" else 0.01)

    tasks = [asyncio.create_task(ask(number)) for number in range(clients)]
    try:
        yield seen
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def test_answers_and_counts_are_those_of_one_process(home: Path) -> None:
    model = load_alone(home)
    pictures = [jpeg(seed, 60, 50) for seed in range(24)]
    with running_server(home, workers=3, shared_engine=True, batch_buckets="on", max_batch=8) as server:
        async with httpx.AsyncClient(base_url=server.url(), timeout=30) as client:
            answers = await asyncio.gather(*(client.post("/embed", json=embed(one)) for one in pictures))
        for picture, answer in zip(pictures, answers, strict=True):
            of_picture, of_text = (vector(one) for one in answer.json()["embeddings"])
            np.testing.assert_allclose(of_picture, model.encode_images([picture])[0], atol=1e-6)
            np.testing.assert_allclose(of_text, model.encode_texts(["a cat"])[0], atol=1e-6)
        for _ in range(4):  # whichever front is asked
            assert server.metric("requests_total", route="/embed", code="200") == 24
            assert server.metric("items_total", model="toy", kind="image") == 24
            assert server.metric("batch_size_sum", model="toy", encoder="image") == 24
            assert server.metric("batch_size_sum", model="toy", encoder="text") == 24
            one = {"model": "toy", "runtime": "onnxruntime", "provider": "cpu", "precision": "fp32"}
            assert server.metric("model_info", **one) == 1
            await until(partial(nothing_waits, server))
        described = get(server, "/models/toy").json()
        assert (described["loaded"], described["runtime"]) == (True, "onnxruntime")
        assert server.log.count("model loaded") == 1
        assert server.log.count('"ready"') == 3


def embed(picture: bytes) -> dict[str, object]:
    return {"inputs": [{"image": {"base64": base64(picture)}}, {"text": "a cat"}], "encoding": "base64"}


def vector(entry: dict[str, str]) -> np.ndarray:
    return np.frombuffer(b64decode(entry["embedding"]), np.float32)


def test_models_of_different_sizes_share_the_memory(home: Path) -> None:
    write_toy_model(home / "models", name="large", seed=5, size=96, dim=24)
    with running_server(home, models="toy,large", workers=1, shared_engine=True) as server:
        for name in ("large", "toy", "large"):
            answer = httpx.post(f"{server.url()}/embed", json=embed(jpeg(3, 200, 120)) | {"model": name})
            of_picture, of_text = (vector(one) for one in answer.json()["embeddings"])
            model = load_alone(home, name)
            np.testing.assert_allclose(of_picture, model.encode_images([jpeg(3, 200, 120)])[0], atol=1e-6)
            np.testing.assert_allclose(of_text, model.encode_texts(["a cat"])[0], atol=1e-6)


def test_a_bad_picture_fails_alone(home: Path) -> None:
    with running_server(home, workers=1, shared_engine=True) as server:
        good, bad = BODY["image"], {"base64": base64(truncated_jpeg())}
        body = {"images": [good, bad, good], "labels": ["cat", "dog"]}
        results = httpx.post(f"{server.url()}/classify", json=body).json()["results"]
        assert [one.get("error", {}).get("code") for one in results] == [None, "invalid_image", None]
        assert results[0]["predictions"] == results[2]["predictions"]


async def test_a_front_that_is_killed_takes_nobody_along(home: Path) -> None:
    with running_server(home, workers=2, shared_engine=True, max_queue=8) as server:
        url = server.url()
        for count in range(1, 4):
            async with load(url, clients=8) as seen:
                await seen.more(40)
                kill(server.workers[-1])
                await until(partial(has_said_ready, server, 2 + count))
            assert set(seen.answers) == {"ok"}, "only connections are lost"
            assert max(seen.cut.values(), default=0) <= 1, "and each of them once"
        assert len(server.engines) == 1
        many = {"images": [BODY["image"]] * 8, "labels": ["cat"]}
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            for _ in range(6):  # both have all of their slots
                answer = await client.post("/classify", json=many, headers={"connection": "close"})
                assert answer.status_code == 200
        await until(partial(nothing_waits, server))


async def test_an_engine_process_that_is_killed_is_replaced(home: Path) -> None:
    with running_server(home, workers=2, shared_engine=True) as server:
        for _ in range(2):
            async with load(server.url(), clients=8) as seen:
                await seen.more(40)
                kill(server.engines[-1])
                await seen.more(1, code="engine_stopped")
                assert get(server, "/health/ready").status_code == 503
                assert get(server, "/health/live").status_code == 200
                await until(partial(is_ready, server))
                await seen.more(40)
            assert set(seen.answers) == {"ok", "engine_stopped"}
            assert not seen.cut
        assert (len(server.engines), len(server.workers)) == (3, 2)
        assert "Traceback" not in server.log


async def test_a_build_goes_on_with_the_next_engine_process(home: Path) -> None:
    with running_server(home, workers=1, shared_engine=True) as server:
        async with httpx.AsyncClient(base_url=server.url(), timeout=30) as client:
            labels = [f"label number {number}" for number in range(1500)]
            answer = await client.put("/classifiers/large", json={"labels": labels})
            assert answer.status_code == 202
            assert get(server, "/classifiers/large").json()["state"] == "building"
            kill(server.engines[0])
            await until(lambda: get(server, "/classifiers/large").json()["state"] != "building")
        assert get(server, "/classifiers/large").json()["state"] == "ready"
        assert len(server.engines) == 2


async def test_what_a_halted_engine_process_holds_is_bounded_and_comes_back(home: Path) -> None:
    with running_server(home, workers=1, shared_engine=True, max_queue=3, request_timeout=1.5) as server:
        async with httpx.AsyncClient(base_url=server.url(), timeout=30) as client:
            await client.post("/classify", json=BODY)
            os.kill(server.engines[0], signal.SIGSTOP)
            for _ in range(5):  # clients go away, and with them what they hold
                waiting = [asyncio.create_task(client.post("/classify", json=BODY)) for _ in range(3)]
                await until(lambda: server.metric("admitted_items") == 3)
                refused = await client.post("/classify", json=BODY)
                assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
                assert int(refused.headers["retry-after"]) >= 1
                for task in waiting:
                    task.cancel()
                await until(lambda: server.metric("admitted_items") == 0)
            late = await client.post("/classify", json=BODY)
            assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
            os.kill(server.engines[0], signal.SIGCONT)
            answers = await asyncio.gather(*(client.post("/classify", json=BODY) for _ in range(3)))
            assert [answer.status_code for answer in answers] == [200] * 3
        await until(partial(nothing_waits, server))


async def test_it_stops_under_load_without_cutting_a_request_off(home: Path) -> None:
    names = shared_memory()
    with started_server(home, workers=2, shared_engine=True, drain_seconds=0.5) as server:
        server.wait_until_ready()
        async with load(server.url(), clients=12) as seen:
            await seen.more(40)
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: server.process.poll() is not None)
        assert server.wait() == 0
    assert (set(seen.answers), dict(seen.cut)) == ({"ok"}, {})
    assert not any(is_alive(pid) for pid in server.workers + server.engines)
    assert list((home / "cache").glob("metrics-*")) == []
    assert "Traceback" not in server.log
    wait_until(lambda: shared_memory() <= names)


async def test_a_stop_that_every_process_is_told_of_cuts_no_request_off(home: Path) -> None:
    """As systemd tells them; and the parent passes on what it is told."""
    with started_server(home, workers=2, shared_engine=True, drain_seconds=0.5) as server:
        server.wait_until_ready()
        async with load(server.url(), clients=12) as seen:
            await seen.more(40)
            for pid in (*server.workers, *server.engines, server.process.pid):
                os.kill(pid, signal.SIGTERM)
            await until(lambda: server.process.poll() is not None)
        assert server.wait() == 0
    assert (set(seen.answers), dict(seen.cut)) == ({"ok"}, {})


def test_whatever_is_killed_nothing_is_left_behind(home: Path) -> None:
    names = shared_memory()
    with started_server(home, workers=2, shared_engine=True) as server:
        server.wait_until_ready()
        assert httpx.post(f"{server.url()}/classify", json=BODY).status_code == 200
        for pid in (*server.workers, *server.engines):
            os.kill(pid, signal.SIGSTOP)  # so that none of them can clean up
        for pid in (server.process.pid, *server.workers, *server.engines):
            kill(pid)
        wait_until(lambda: not any(is_alive(pid) for pid in server.workers + server.engines))
    wait_until(lambda: shared_memory() <= names)


def test_all_end_with_their_parent(home: Path) -> None:
    with started_server(home, workers=2, shared_engine=True) as server:
        server.wait_until_ready()
        server.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in server.workers + server.engines))


def test_it_can_be_stopped_while_a_front_waits_for_the_engine_process(home: Path) -> None:
    with started_server(home, workers=1, shared_engine=True) as server:
        server.wait_until_ready()
        (engine,), (front,) = server.engines, server.workers
        os.kill(engine, signal.SIGSTOP)
        kill(front)
        wait_until(lambda: len(server.workers) == 2)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_alive(server.workers[1]))
        os.kill(engine, signal.SIGCONT)
        assert server.wait(seconds=20) == 0


def test_an_engine_process_that_stands_still_is_ended(home: Path) -> None:
    with running_server(home, workers=1, shared_engine=True, stall_timeout=0.5) as server:
        os.kill(server.engines[0], signal.SIGSTOP)
        wait_until(lambda: "the engine process has stood still for more than 3 s" in server.log)
        wait_until(lambda: len(server.engines) == 2 and is_ready(server))
        assert httpx.post(f"{server.url()}/classify", json=BODY).status_code == 200
        assert len(server.workers) == 1


async def test_an_engine_process_whose_batch_hangs_ends_itself(home: Path) -> None:
    write_toy_model(home / "models", name="busy", work=8, size=128)
    with started_server(home, models="busy", workers=1, shared_engine=True, stall_timeout=1e-6) as server:
        server.wait_until_ready()
        async with load(server.url(), clients=8):
            await until(lambda: "the engine is dead: a batch of image encoder of busy" in server.log)
            await until(lambda: "the engine process ended with status 1: starting another" in server.log)
            await until(lambda: len(server.engines) > 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"models": "toy,nothing"}, "no model named 'nothing'; known models: "),
        ({"admin_key": "0123456789abcdef"}, "needs SHARED_ENGINE to be off"),
        ({"provider": "cuda"}, "cannot start: "),
    ],
    ids=["unknown model", "admin key", "provider"],
)
def test_what_cannot_start_ends_with_1_and_a_sentence(
    home: Path, settings: dict[str, str], says: str
) -> None:
    with started_server(home, workers=1, shared_engine=True, **settings) as server:
        assert server.wait() == 1
        assert says in server.log
        assert "Traceback" not in server.log
        assert "starting another" not in server.log

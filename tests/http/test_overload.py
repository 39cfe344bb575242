"""Overload, deadlines and failing encoders: each is an answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.served import _check_finite
from tests.apps import Client, serving, until
from tests.problems import IMAGE, classify, refused


class Held:
    """An encoder that answers only when it is let go."""

    def __init__(self, client: Client, encoder: str = "image") -> None:
        served = client.services.engine.model("toy")
        self.batcher = served.queues[encoder]
        self._run = self.batcher._run
        self.batcher._run = self._wait
        self.release = threading.Event()
        self.fail_with: BaseException | None = None

    def _wait(self, items: Sequence[Any]) -> Any:
        assert self.release.wait(10)
        if self.fail_with is not None:
            raise self.fail_with
        return self._run(items)


async def test_over_capacity_is_429_and_costs_no_decoding(tmp_path: Path) -> None:
    async with serving(tmp_path, max_queue=2) as client:
        held = Held(client)
        working = [asyncio.create_task(client.request(*classify()[:2], **classify()[2])) for _ in range(2)]
        await until(lambda: client.services.admission.taken == 2)
        problem = await refused(client, "POST", "/classify", content=b"never read")
        assert (problem["status"], problem["code"]) == (429, "queue_full")
        assert await client.metric("rejected_total", reason="queue_full") == 1
        assert await client.metric("admitted_items") == 2
        assert (await client.get("/health/live")).status_code == 200
        held.release.set()
        assert [(await answer).status_code for answer in working] == [200, 200]
        assert await client.metric("admitted_items") == 0
        assert (await client.request(*classify()[:2], **classify()[2])).status_code == 200


async def test_a_request_of_more_items_than_places_left_is_429(tmp_path: Path) -> None:
    async with serving(tmp_path, max_queue=3) as client:
        method, path, request = classify(image=None, images=[IMAGE] * 3)
        with client.services.admission.reserve():
            problem = await refused(client, method, path, **request)
            assert (problem["status"], problem["code"]) == (429, "queue_full")
            assert client.services.admission.taken == 1
        assert (await client.request(method, path, **request)).status_code == 200


async def test_a_passed_deadline_is_504_and_frees_its_places(tmp_path: Path) -> None:
    async with serving(tmp_path, request_timeout=0.2) as client:
        warm, (method, path, request) = await client.request(*classify()[:2], **classify()[2]), classify()
        assert warm.status_code == 200
        held = Held(client)
        problem = await refused(client, method, path, **request)
        assert (problem["status"], problem["code"]) == (504, "deadline_exceeded")
        assert "0.2 s" in problem["detail"]
        assert client.services.admission.taken == 0
        assert await client.metric("rejected_total", reason="deadline_exceeded") == 1
        held.release.set()
        assert (await client.request(method, path, **request)).status_code == 200


async def test_a_dead_engine_is_503_and_says_so_to_probes(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(client)
    held.fail_with = SystemExit("by the test")
    held.release.set()
    method, path, request = classify()
    problem = await refused(client, method, path, **request)
    assert (problem["status"], problem["code"]) == (503, "engine_stopped")
    problem = await refused(client, method, path, **request)
    assert (problem["status"], problem["code"]) == (503, "engine_stopped")
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    assert (live.status_code, ready.status_code) == (503, 503)
    assert live.json()["reasons"] == ["the worker of image encoder of toy died"]
    assert "by the test" in caplog.text  # and nowhere else: probes are open to all
    assert ready.json()["status"] == "dead"


async def test_an_unforeseen_error_is_500_and_tells_nothing_of_itself(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(client)
    held.fail_with = RuntimeError("secret path")
    held.release.set()
    method, path, request = classify()
    problem = await refused(client, method, path, **request)
    assert (problem["status"], problem["code"]) == (500, "internal_error")
    assert "secret" not in str(problem)
    assert "secret path" in caplog.text
    assert (await client.get("/health/live")).status_code == 200


async def test_values_that_are_not_finite_fail_their_item_alone(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = client.services.engine.model("toy").images

    def run(items: Sequence[Any]) -> Any:
        features = np.ones((len(items), 48), np.float32)
        features[[next(numbers) == 1 for _ in items], 7] = np.nan
        return _check_finite(features)

    batcher._run = run
    bodies: dict[str, dict[str, Any]] = {
        "/classify": {"images": [IMAGE] * 3, "labels": ["a"]},
        "/embed": {"inputs": [{"image": IMAGE}] * 3},
    }
    for path, body in bodies.items():
        numbers = itertools.count()
        answer = await client.post(path, json=body, headers={"x-request-id": path})
        entries = answer.json()["results" if path == "/classify" else "embeddings"]
        codes = [entry.get("error", {}).get("code") for entry in entries]
        assert codes.count("internal_error") == 1
        assert codes.count(None) == 2
        (logged,) = [one for one in caplog.records if one.exc_info and getattr(one, "request_id", "") == path]
        assert "not finite" in str(logged.exc_info)


async def test_while_starting_requests_are_503(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=False) as client:
        problem = await refused(client, *classify()[:2], **classify()[2])
        assert (problem["status"], problem["code"]) == (503, "unavailable")
        assert "starting" in problem["detail"]

"""Loading, replacing and unloading models while the server serves, and who may do it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.apps import Client, base64, serving, until
from tests.pictures import png
from tests.toy_models import write_toy_model

KEY = "a-long-and-secret-key"
NOISE = 1e-6  # batches of other sizes add up in another order
ADMIN = {"Authorization": f"Bearer {KEY}"}


def body(**more: Any) -> dict[str, Any]:
    return {"image": {"base64": base64(png())}, **more}


async def similarity(client: Client, **more: Any) -> float:
    answer = await client.post("/classify", json=body(**more))
    assert answer.status_code == 200, answer.text
    return float(answer.json()["results"][0]["predictions"][0]["similarity"])


async def test_only_the_admin_key_opens_it(tmp_path: Path) -> None:
    async with serving(tmp_path, admin_key=KEY) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            answer = await client.post("/models/toy/load", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await client.post("/models/toy/load", headers=ADMIN)).status_code == 200


async def test_without_an_admin_key_nobody_may(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.post("/models/toy/unload", headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_a_model_comes_and_goes_at_run_time(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models", name="other", seed=7)
    async with serving(tmp_path, admin_key=KEY) as client:
        assert (await client.post("/classify", json=body(labels=["a"], model="other"))).status_code == 404
        loaded = await client.post("/models/other/load", headers=ADMIN)
        assert (loaded.status_code, loaded.json()["loaded"]) == (200, True)
        assert 'model="other"' in _gauges((await client.get("/metrics")).text)
        await similarity(client, labels=["a"], model="other")
        assert (await client.post("/models/other/unload", headers=ADMIN)).status_code == 204
        assert (await client.post("/classify", json=body(labels=["a"], model="other"))).status_code == 404
        assert 'model="other"' not in _gauges((await client.get("/metrics")).text)


async def test_the_default_model_stays(tmp_path: Path) -> None:
    async with serving(tmp_path, admin_key=KEY) as client:
        answer = await client.post("/models/toy/unload", headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_broken_replacement_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, admin_key=KEY) as client:
        before = await similarity(client, labels=["a"])
        (tmp_path / "models" / "toy" / "image.onnx").write_bytes(b"broken")
        manifest = tmp_path / "models" / "toy" / "model.json"
        manifest.write_text(manifest.read_text().replace('"source":', '"source": "changed", "licence":', 1))
        answer = await client.post("/models/toy/load", headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (503, "broken_model")
        assert await similarity(client, labels=["a"]) == pytest.approx(before, abs=NOISE)


async def test_a_model_is_replaced_under_load_without_a_failed_request(tmp_path: Path) -> None:
    async with serving(tmp_path, admin_key=KEY) as client:
        old = await similarity(client, labels=["a"])
        named = await client.put("/classifiers/named", json={"labels": ["a", "b"]})
        assert named.json()["state"] == "ready"
        stop = asyncio.Event()

        async def ask() -> list[float]:
            seen = []
            while not stop.is_set():
                seen.append(await similarity(client, labels=["a"]))
            return seen

        askers = [asyncio.create_task(ask()) for _ in range(8)]
        shutil.rmtree(tmp_path / "models" / "toy")
        write_toy_model(tmp_path / "models", seed=99)
        assert (await client.post("/models/toy/load", headers=ADMIN)).status_code == 200
        new = await similarity(client, labels=["a"])
        stop.set()
        seen = [value for asker in askers for value in await asker]
        assert abs(new - old) > 100 * NOISE
        assert all(min(abs(value - old), abs(value - new)) < NOISE for value in seen)

        async def named_is_rebuilt() -> bool:
            answer = await client.post("/classify", json=body(classifier="named"))
            return answer.status_code == 200

        for _ in range(100):
            if await named_is_rebuilt():
                break
            await asyncio.sleep(0.05)
        predictions = (await client.post("/classify", json=body(classifier="named"))).json()["results"][0]
        best = {one["label"]: one["similarity"] for one in predictions["predictions"]}
        assert best["a"] == pytest.approx(new, abs=NOISE)
        await until(lambda: len(client.services.engine.served()) == 1)


def _gauges(metrics: str) -> str:
    """What describes the present state; counters keep what was counted."""
    names = ("clipserve_model_info", "clipserve_queue_items", "clipserve_model_load_seconds")
    return "\n".join(line for line in metrics.splitlines() if line.startswith(names))

"""What every request carries, what is counted, and what probes see."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.apps import Client, base64, serving
from tests.pictures import png, truncated_jpeg

BODY = {"image": {"base64": base64(png())}, "labels": ["a", "b"]}


async def test_a_request_id_is_echoed_or_made(client: Client) -> None:
    for path in ("/health/live", "/nowhere"):
        answer = await client.get(path, headers={"x-request-id": "abc-123"})
        assert answer.headers.get_list("x-request-id") == ["abc-123"]
    made = {(await client.get("/health/live")).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


@pytest.mark.parametrize("bad", ["", "a b", "a" * 129, "ä", "a\tb"])
async def test_a_request_id_that_could_break_a_log_is_replaced(client: Client, bad: str) -> None:
    answer = await client.get("/health/live", headers={"x-request-id": bad.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_server_timing_names_the_stages_in_milliseconds(client: Client) -> None:
    def stages(header: str) -> dict[str, float]:
        return {
            name: float(duration.removeprefix("dur="))
            for name, duration in (part.split(";") for part in header.split(", "))
        }

    first = stages((await client.post("/classify", json=BODY)).headers["server-timing"])
    assert first.keys() == {"read", "decode", "queue", "encode", "score"}
    assert all(0 <= spent < 5000 for spent in first.values())
    text = stages((await client.post("/embed", json={"inputs": [{"text": "a"}]})).headers["server-timing"])
    assert text.keys() == {"read", "queue", "encode"}
    assert "server-timing" not in (await client.get("/health/live")).headers


async def test_requests_are_counted_by_route_and_code(client: Client) -> None:
    await client.post("/classify", json=BODY)
    await client.post("/classify", json=BODY)
    await client.post("/classify", json=BODY | {"labels": []})
    await client.post("/classify", content=b"{", headers={"content-type": "application/json"})
    await client.get("/classifiers/../../etc/passwd")
    await client.get("/classifiers/one")
    await client.get("/classifiers/two")
    for route, code, count in (
        ("/classify", "200", 2),
        ("/classify", "422", 1),
        ("/classify", "400", 1),
        ("/classifiers/{name}", "404", 2),
        ("unmatched", "404", 1),
    ):
        assert await client.metric("requests_total", route=route, code=code) == count, (route, code)
    assert await client.metric("request_seconds_count", route="/classify") == 4


async def test_items_batches_and_stages_are_counted(client: Client) -> None:
    await client.post("/classify", json={"images": [BODY["image"]] * 3, "labels": ["a", "b"]})
    await client.post("/embed", json={"inputs": [{"text": "x"}, {"image": BODY["image"]}]})
    assert await client.metric("items_total", model="toy", kind="image") == 4
    assert await client.metric("items_total", model="toy", kind="text") == 3
    assert await client.metric("batch_size_sum", model="toy", encoder="image") == 4
    assert await client.metric("batch_size_sum", model="toy", encoder="text") == 3
    assert 2 <= await client.metric("batch_size_count", model="toy", encoder="image") <= 4
    assert await client.metric("batch_seconds_sum", model="toy", encoder="image") > 0
    for stage, count in (("read", 2), ("decode", 2), ("queue", 2), ("encode", 2), ("score", 1)):
        assert await client.metric("stage_seconds_count", stage=stage) == count, stage


async def test_a_picture_that_cannot_be_decoded_never_reaches_the_queue(client: Client) -> None:
    await client.post("/classify", json=BODY | {"image": {"base64": base64(truncated_jpeg())}})
    assert await client.metric("batch_size_count", model="toy", encoder="image") == 0
    assert await client.metric("stage_seconds_count", stage="decode") == 1


async def test_metrics_are_well_formed_and_name_nothing_of_a_request(client: Client) -> None:
    await client.post("/classify", json=BODY | {"labels": ["unheard-of"], "model": "unheard-of"})
    await client.post("/classify", json=BODY | {"labels": ["unheard-of", "b"]})
    await client.get("/unheard-of")
    await client.request("UNHEARD-OF", "/classify")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "unheard-of" not in answer.text.lower()
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {name.removeprefix("clipserve_") for name in families} >= {
        *("requests", "request_seconds", "stage_seconds", "batch_size", "batch_seconds", "queue_items"),
        *("admitted_items", "items", "rejected", "cache_events", "cache_bytes", "model_info"),
        "model_load_seconds",
    }
    assert all(family.documentation for family in families.values())
    info = families["clipserve_model_info"].samples[0]
    assert info.labels == {
        "model": "toy",
        "runtime": "onnxruntime",
        "provider": "cpu",
        "precision": "fp32",
    }


async def test_time_buckets_begin_below_a_millisecond(client: Client) -> None:
    await client.post("/classify", json=BODY)
    text = (await client.get("/metrics")).text
    bounds = re.findall(r'clipserve_request_seconds_bucket\{le="([0-9.]+)",route="/classify"\}', text)
    assert float(bounds[0]) < 0.001
    assert float(bounds[-1]) > 30
    assert len(bounds) < 30


async def test_probes_of_a_server_that_starts_and_is_ready(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=False) as client:
        ready, live = await client.get("/health/ready"), await client.get("/health/live")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
    async with serving(tmp_path) as client:
        ready = await client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json() == {
            "status": "ready",
            "models": [
                {
                    "name": "toy",
                    "runtime": "onnxruntime",
                    "provider": "cpu",
                    "precision": "fp32",
                    "warmed": True,
                    "queue": {"image": 0, "text": 0},
                }
            ],
        }
        client.services.draining = True
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await client.post("/classify", json=BODY)).status_code == 200, "what still comes is answered"


async def test_the_access_log_has_a_line_a_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clipserve.access")
    async with serving(tmp_path, access_log=True) as client:
        await client.post("/classify?labels=secret", json=BODY, headers={"x-request-id": "abc"})
        inputs = [{"text": "x"}, {"image": BODY["image"]}, {"text": "y"}]
        await client.post("/embed", json={"inputs": inputs})
        await client.get("/health/live")
    line = next(record for record in caplog.records if getattr(record, "request_id", "") == "abc")
    assert (line.method, line.route, line.status) == ("POST", "/classify", 200)  # type: ignore[attr-defined]
    assert line.ms >= line.encode_ms > 0  # type: ignore[attr-defined]
    items = [getattr(record, "items", None) for record in caplog.records if record.message == "request"]
    assert items == [1, 3, None]
    assert "secret" not in json.dumps(vars(line), default=str)

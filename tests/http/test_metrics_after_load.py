"""Every count that ``/metrics`` shows, held to what a mixed load really did."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.apps import Client, base64, serving
from tests.pictures import jpeg, png, truncated_jpeg

ROUNDS = 8
IMAGE, BAD = {"base64": base64(png())}, {"base64": base64(truncated_jpeg())}
FILE = ("image", ("a.jpg", jpeg(), "image/jpeg"))
JSON, PNG = {"content-type": "application/json"}, {"content-type": "image/png"}

Series = tuple[str, str]


class Tally:
    """What must have been counted."""

    def __init__(self) -> None:
        self.counts = Counter[Series]()

    def request(self, route: str, code: int, *stages: str) -> None:
        self.counts["requests_total", f"{code} {route}"] += 1
        self.counts["request_seconds_count", route] += 1
        for stage in stages:
            self.counts["stage_seconds_count", stage] += 1

    def items(self, **kinds: int) -> None:
        for kind, count in kinds.items():
            self.counts["items_total", f"{kind} toy"] += count

    def encoded(self, **encoders: int) -> None:
        for encoder, count in encoders.items():
            self.counts["batch_size_sum", f"{encoder} toy"] += count

    def event(self, cache: str, event: str, count: int = 1) -> None:
        self.counts["cache_events_total", f"{cache} {event}"] += count


WHOLE = ("read", "decode", "queue", "encode", "score")


async def classify(client: Client, tally: Tally) -> None:
    answer = await client.post("/classify?labels=a&labels=b", content=png(), headers=PNG)
    assert answer.status_code == 200
    tally.request("/classify", 200, *WHOLE)
    tally.items(image=1)
    tally.encoded(image=1)
    tally.event("matrix", "hit")


async def classify_several(client: Client, tally: Tally) -> None:
    body = {"images": [IMAGE, BAD, IMAGE, {"base64": "%"}], "labels": ["a", "b"]}
    assert (await client.post("/classify", json=body)).status_code == 200
    tally.request("/classify", 200, *WHOLE)
    tally.items(image=3)  # what is no base64 is no picture
    tally.encoded(image=2)
    tally.event("matrix", "hit")


async def embed(client: Client, tally: Tally) -> None:
    body = {"inputs": [{"text": "a"}, {"image": IMAGE}, {"text": "b"}]}
    assert (await client.post("/embed", json=body)).status_code == 200
    tally.request("/embed", 200, "read", "decode", "queue", "encode")
    tally.items(image=1, text=2)
    tally.encoded(image=1, text=2)


async def embed_form(client: Client, tally: Tally) -> None:
    assert (await client.post("/embed", files=[FILE, FILE])).status_code == 200
    tally.request("/embed", 200, "read", "decode", "queue", "encode")
    tally.items(image=2)
    tally.encoded(image=2)


async def broken_picture(client: Client, tally: Tally) -> None:
    answer = await client.post("/classify?labels=a&labels=b", content=truncated_jpeg(), headers=PNG)
    assert answer.status_code == 422
    tally.request("/classify", 422, "read", "decode")
    tally.items(image=1)
    tally.event("matrix", "hit")


async def refused(client: Client, tally: Tally) -> None:
    assert (await client.post("/classify", content=b"{", headers=JSON)).status_code == 400
    tally.request("/classify", 400, "read")
    assert (await client.post("/embed", content=b"a")).status_code == 415
    tally.request("/embed", 415, "read")
    assert (await client.get("/models/gpt")).status_code == 404
    tally.request("/models/{name}", 404)
    assert (await client.get(f"/{random.random()}")).status_code == 404
    tally.request("unmatched", 404)
    assert (await client.delete("/embed")).status_code == 405


async def over_capacity(client: Client, tally: Tally) -> None:
    with client.services.admission.reserve() as places:
        places.grow_to(client.services.settings.max_queue - client.services.admission.taken + 1)
        assert (await client.post("/embed", json={"inputs": [{"text": "a"}]})).status_code == 429
    tally.request("/embed", 429)
    tally.counts["rejected_total", "queue_full"] += 1


async def test_counts_are_those_of_the_load(tmp_path: Path) -> None:
    tally = Tally()
    async with serving(tmp_path, max_queue=500) as client:
        assert (
            await client.post("/classify?labels=a&labels=b", content=png(), headers=PNG)
        ).status_code == 200
        tally.request("/classify", 200, *WHOLE)
        tally.items(image=1, text=2)
        tally.encoded(image=1, text=2)
        tally.event("matrix", "miss")
        tally.event("class", "miss", 2)

        kinds = [classify, classify_several, embed, embed_form, broken_picture, refused]
        load = [kind(client, tally) for kind in kinds for _ in range(ROUNDS)]
        random.Random(0).shuffle(load)
        await asyncio.gather(*load)
        for _ in range(ROUNDS):
            await over_capacity(client, tally)
        text = (await client.get("/metrics")).text
    seen = _series(text)
    assert seen.pop(("requests_total", "405 /embed")) == ROUNDS
    tally.counts["request_seconds_count", "/embed"] += ROUNDS
    batches = {series: seen.pop(series) for series in list(seen) if series[0].startswith("batch_")}
    assert seen == {series: count for series, count in tally.counts.items() if series[0] != "batch_size_sum"}
    for encoder in ("image", "text"):
        series = f"{encoder} toy"
        assert batches["batch_size_sum", series] == tally.counts["batch_size_sum", series]
        assert batches["batch_size_count", series] == batches["batch_seconds_count", series]
        assert batches["batch_size_count", series] <= batches["batch_size_sum", series]


def _series(text: str) -> dict[Series, Any]:
    """Counters and the counts of histograms, without what never happened, and the sums of batch sizes."""
    return {
        (
            sample.name.removeprefix("clipserve_"),
            " ".join(value for _, value in sorted(sample.labels.items())),
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        if family.type in {"counter", "histogram"}
        for sample in family.samples
        if sample.name.endswith(("_total", "_count", "batch_size_sum")) and sample.value
    }

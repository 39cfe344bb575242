"""Building a large classifier delays a request by the batch that is running, and by no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.apps import Client, serving, until

LABELS = 400
SEEN = 12  # batches of the build during which somebody asks


class Steps:
    """A text encoder that notes what each batch holds and runs one only when it is told to."""

    def __init__(self, client: Client, urgent: Sequence[str]) -> None:
        served = client.services.engine.model("toy")
        self.batcher = served.texts
        self._run = self.batcher._run
        self.batcher._run = self._step
        self._urgent = {text.ids.tobytes() for text in served.model.tokenizer(list(urgent))}
        self._turns = threading.Semaphore(0)
        self.begun: list[list[str]] = []

    def _step(self, items: Sequence[np.ndarray]) -> Any:
        self.begun.append(["urgent" if item.tobytes() in self._urgent else "bulk" for item in items])
        assert self._turns.acquire(timeout=10)
        return self._run(items)

    def run_one(self) -> None:
        self._turns.release()

    def run_all(self) -> None:
        self._turns.release(10_000)


async def test_a_request_waits_for_one_batch_of_a_build_at_most(tmp_path: Path) -> None:
    texts = [f"urgent {number}" for number in range(3 * SEEN)]
    async with serving(tmp_path, background_prompts=10, max_batch=8) as client:
        steps = Steps(client, texts)
        labels = [f"label {number}" for number in range(LABELS)]
        assert (await client.put("/classifiers/large", json={"labels": labels})).status_code == 202
        for turn in range(SEEN):
            await _ask_meanwhile(client, steps, texts[3 * turn : 3 * turn + 1 + turn % 3])
        assert (await client.get("/classifiers/large")).json()["state"] == "building", "or nothing was shown"
        steps.run_all()
        await until(lambda: client.services.classifiers.describe("large")["state"] == "ready")
    assert sum(batch.count("bulk") for batch in steps.begun) == LABELS


async def _ask_meanwhile(client: Client, steps: Steps, texts: list[str]) -> None:
    """All of ``texts`` in requests of their own, while a batch of the build is running."""
    await until(lambda: steps.begun and set(steps.begun[-1]) == {"bulk"})
    before = len(steps.begun)
    asking = asyncio.gather(*(client.post("/embed", json={"inputs": [{"text": one}]}) for one in texts))
    await until(lambda: steps.batcher.waiting("interactive") == len(texts))
    steps.run_one()
    await until(lambda: len(steps.begun) > before)
    assert steps.begun[before] == ["urgent"] * len(texts), "the next batch is theirs, and theirs alone"
    steps.run_one()
    assert [answer.status_code for answer in await asking] == [200] * len(texts)

"""Class matrices that several callers wait for, or none any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from prompts.labels import Label
from prompts.templates import TemplateSet
from service.batcher import Lane
from service.class_builder import ClassBuilder
from service.metrics import Metrics
from service.served import Features, ServedModel
from tests.apps import Client, until

LABELS = [Label("cat"), Label("dog")]
TEMPLATES = TemplateSet(name="own", templates=("a {label}",))


class Encoder:
    """Gives features when ``go`` is set, and counts who asked and who left."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = self.left = 0

    async def __call__(self, served: ServedModel, texts: Sequence[str], *, lane: Lane) -> Features:
        self.asked += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        return np.eye(len(texts), 8, dtype=np.float32)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def builder(encoder: Encoder) -> ClassBuilder:
    return ClassBuilder(
        encoder, Metrics(), class_cache_bytes=2**20, matrix_cache_bytes=2**20, background_prompts=256
    )


async def test_one_who_leaves_takes_no_one_along(
    client: Client, builder: ClassBuilder, encoder: Encoder
) -> None:
    served = client.services.served_model(None)
    callers = [asyncio.create_task(builder.matrix(served, LABELS, TEMPLATES)) for _ in range(3)]
    await until(lambda: encoder.asked)
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    encoder.go.set()
    assert (await callers[1]).shape == (await callers[2]).shape == (2, 8)
    assert (encoder.asked, encoder.left) == (1, 0)
    await builder.matrix(served, LABELS, TEMPLATES)
    assert encoder.asked == 1, "or the matrix was not kept"


async def test_work_that_nobody_waits_for_ends(
    client: Client, builder: ClassBuilder, encoder: Encoder
) -> None:
    served = client.services.served_model(None)
    callers = [asyncio.create_task(builder.matrix(served, LABELS, TEMPLATES)) for _ in range(3)]
    await until(lambda: encoder.asked)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    encoder.go.set()
    matrix = await builder.matrix(served, LABELS, TEMPLATES)  # joins nothing that is about to end
    assert matrix.shape == (2, 8)
    assert (encoder.asked, encoder.left) == (2, 1)

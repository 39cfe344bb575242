"""Broken pictures over HTTP, in every transport: each is served or refused, and nothing else comes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import settings

from tests.apps import base64
from tests.fuzz.mutations import broken, seeds
from tests.fuzz.servers import check, fuzzed_server
from tests.server import Server, clients

INPUTS = 4 * settings().max_examples  # 400, and with make fuzz thousands
CALLERS = 8
OUTCOMES = {None, "invalid_image", "unsupported_image_format", "image_too_large"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with fuzzed_server(tmp_path_factory.mktemp("pictures")) as server:
        yield server


async def send(client: httpx.AsyncClient, pictures: list[bytes], random: Random) -> list[str | None]:
    """The code of each picture's error, None where it was served."""
    if len(pictures) > 1:
        inputs = [{"image": {"base64": base64(one)}} for one in pictures]
        answer = await client.post("/embed", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        return [entry.get("error", {}).get("code") for entry in answer.json()["embeddings"]]
    body: dict[str, Any] = random.choice(
        [
            {"content": pictures[0], "headers": {"content-type": "image/png"}},
            {"files": {"image": ("picture.jpg", pictures[0], "image/jpeg")}},
            {"json": {"inputs": [{"image": {"base64": base64(pictures[0])}}]}},
        ]
    )
    answer = await client.post("/embed", **body)
    check(answer)
    return [None if answer.status_code == 200 else answer.json()["code"]]


@pytest.mark.timeout(900)
async def test_broken_pictures_are_served_or_refused(server: Server) -> None:
    sound, outcomes, left = seeds(), Counter[str | None](), iter(range(INPUTS))

    async def call(client: httpx.AsyncClient) -> None:
        for number in left:
            random = Random(number)
            pictures = [broken(sound, random) for _ in range(random.choice((1, 1, 1, 5)))]
            outcomes.update(await send(client, pictures, random))

    async with clients(server, CALLERS) as open_clients, asyncio.TaskGroup() as group:
        for client in open_clients:
            group.create_task(call(client))
    assert outcomes.keys() <= OUTCOMES
    assert outcomes.total() >= INPUTS
    assert min(outcomes[None], outcomes["invalid_image"]) > INPUTS / 10, "mutations must reach the decoders"


async def test_the_seeds_themselves_are_served(server: Server) -> None:
    async with clients(server, 1) as (client,):
        assert set(await send(client, seeds(), Random(0))) == {None}

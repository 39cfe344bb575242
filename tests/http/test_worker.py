"""One of several processes: ready only when all are."""

from __future__ import annotations

import socket
from pathlib import Path

from service.app import create_app
from service.worker import Worker
from tests.apps import Client, toy_settings, until


async def test_it_is_ready_when_all_are(tmp_path: Path) -> None:
    starts = [0, 0]
    with socket.socket() as listening:
        worker = Worker(number=1, starts=starts, listening=listening, metrics_socket=None, replaces=False)
        app = create_app(toy_settings(tmp_path), worker)
        async with app.router.lifespan_context(app), Client(app) as client:
            await until(lambda: starts == [0, 1])
            answer = await client.get("/health/ready")
            assert (answer.status_code, answer.json()["status"]) == (503, "starting")
            starts[0] = 1
            assert (await client.get("/health/ready")).status_code == 200


async def test_one_that_replaces_another_is_ready_before_it_listens(tmp_path: Path) -> None:
    starts = [1, 1]
    with socket.socket() as listening:
        worker = Worker(number=0, starts=starts, listening=listening, metrics_socket=None, replaces=True)
        app = create_app(toy_settings(tmp_path), worker)
        async with app.router.lifespan_context(app), Client(app) as client:
            assert starts == [2, 1]
            assert (await client.get("/health/ready")).status_code == 200

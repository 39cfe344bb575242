"""Several processes on one port: one server to whoever looks at it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.apps import base64
from tests.pictures import png
from tests.server import is_alive, running_server, started_server, wait_until
from tests.toy_models import write_toy_model

BODY = {"image": {"base64": base64(png())}, "labels": ["cat", "dog"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_toy_model(tmp_path / "models")
    return tmp_path


def ask(url: str, count: int) -> list[int]:
    """Each on a connection of its own, so that every worker gets some."""
    return [httpx.post(f"{url}/classify", json=BODY, timeout=30).status_code for _ in range(count)]


async def ask_side_by_side(url: str, count: int) -> list[int]:
    async with httpx.AsyncClient(timeout=30) as client:
        answers = await asyncio.gather(*(client.post(f"{url}/classify", json=BODY) for _ in range(count)))
    return [answer.status_code for answer in answers]


async def test_metrics_add_up_whoever_is_asked(home: Path) -> None:
    with running_server(home, workers=3) as server:
        url = server.url()
        assert set(await ask_side_by_side(url, 60)) == {200}
        for _ in range(8):
            assert server.metric("requests_total", route="/classify", code="200") == 60
            assert server.metric("items_total", model="toy", kind="image") == 60
            assert server.metric("request_seconds_count", route="/classify") == 60
            one = {"model": "toy", "runtime": "onnxruntime", "provider": "cpu", "precision": "fp32"}
            assert server.metric("model_info", **one) == 1
            assert server.metric("store_reachable") == 1
            assert server.metric("queue_items", model="toy", encoder="image", lane="interactive") == 0
        assert len(set(server.workers)) == 3


def test_metrics_have_a_port_of_their_own(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_server(home, workers=2, metrics_port=port) as server:
        assert ask(server.url(), 5) == [200] * 5
        assert httpx.get(f"{server.url()}/metrics").status_code == 404
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'clipserve_requests_total{code="200",route="/classify"} 5.0' in text


async def test_connections_that_stay_are_divided_evenly(home: Path) -> None:
    def sockets(pid: int) -> int:
        return sum(file.is_socket() for file in Path(f"/proc/{pid}/fd").iterdir())

    async def come(port: int) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: server\r\n\r\n")
        assert b"200" in await reader.readline()
        return writer

    with running_server(home, workers=2) as server:
        before = [sockets(pid) for pid in server.workers]
        port = int(server.url().rpartition(":")[2])
        stays = await asyncio.gather(*(come(port) for _ in range(40)))
        taken = [sockets(pid) - count for pid, count in zip(server.workers, before, strict=True)]
        assert min(taken) >= 10, taken
        for writer in stays:
            writer.close()


def test_a_worker_that_dies_is_replaced_and_nobody_notices(home: Path) -> None:
    with running_server(home, workers=2) as server:
        url, (first, second) = server.url(), server.workers
        assert ask(url, 10) == [200] * 10
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "starting another" in server.log)
        assert ask(url, 10) == [200] * 10
        assert httpx.get(f"{url}/health/ready").status_code == 200
        wait_until(lambda: len(server.workers) == 3 and server.log.count('"ready"') == 3)
        os.kill(second, signal.SIGKILL)  # now the new one has to answer
        wait_until(lambda: server.log.count("starting another") == 2)
        assert ask(url, 10) == [200] * 10
        assert server.metric("requests_total", route="/classify", code="200") == 30


def test_it_stops_under_load_without_cutting_a_request_off(home: Path) -> None:
    async def load(url: str) -> tuple[int, list[httpx.HTTPError]]:
        answered, cut_off = 0, []

        async def client() -> None:
            nonlocal answered
            async with httpx.AsyncClient(timeout=30) as connection:
                while True:
                    try:
                        answer = await connection.post(f"{url}/classify", json=BODY)
                    except httpx.ConnectError:
                        return
                    except httpx.HTTPError as error:
                        cut_off.append(error)
                        return
                    assert answer.status_code == 200
                    answered += 1

        clients = [asyncio.create_task(client()) for _ in range(16)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)
        return answered, cut_off

    with started_server(home, workers=3, drain_seconds=0.5) as server:
        server.wait_until_ready()
        answered, cut_off = asyncio.run(load(server.url()))
        assert server.wait(seconds=20) == 0
    assert answered > 16
    assert cut_off == []
    assert not any(is_alive(pid) for pid in server.workers)


def test_an_interrupt_ends_all_of_them(home: Path) -> None:
    with started_server(home, workers=2) as server:
        server.wait_until_ready()
        server.process.send_signal(signal.SIGINT)
        assert server.wait(seconds=20) == 0
        assert "Traceback" not in server.log
        assert not any(is_alive(pid) for pid in server.workers)


def test_workers_end_with_their_parent(home: Path) -> None:
    with started_server(home, workers=2) as server:
        server.wait_until_ready()
        server.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in server.workers))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"models": "toy,nothing"}, "no model named 'nothing'; known models: "),
        ({"admin_key": "0123456789abcdef"}, "needs WORKERS to be 1"),
    ],
    ids=["unknown model", "admin key"],
)
def test_what_cannot_start_ends_with_1_and_a_sentence(
    home: Path, settings: dict[str, str], says: str
) -> None:
    with started_server(home, workers=2, **settings) as server:
        assert server.wait() == 1
        assert says in server.log
        assert "Traceback" not in server.log
        assert "starting another" not in server.log


def test_a_port_that_is_taken_ends_it_with_1(home: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        started_server(home, workers=2, port=taken.getsockname()[1]) as server,
    ):
        assert server.wait() == 1
        assert "address already in use" in server.log.lower()
        assert "Traceback" not in server.log

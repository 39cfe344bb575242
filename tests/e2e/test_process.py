"""The life of a server process: start, readiness, stop, and the ways it may refuse to start."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.apps import base64
from tests.pictures import png
from tests.server import running_server, started_server, wait_until
from tests.toy_models import write_toy_model

BODY = {"image": {"base64": base64(png())}, "labels": ["cat", "dog"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_toy_model(tmp_path / "models")
    return tmp_path


def slow_to_load(home: Path) -> None:
    """A quarter of a gigabyte of nothing, which must be hashed before the model is served."""
    size = 2**28
    place = home / "models" / "toy"
    with (place / "ballast").open("wb") as ballast:
        ballast.truncate(size)
    digest = hashlib.sha256()
    for _ in range(size // 2**20):
        digest.update(bytes(2**20))
    manifest = json.loads((place / "model.json").read_text())
    manifest["files"]["ballast"] = {"sha256": digest.hexdigest(), "size": size}
    (place / "model.json").write_text(json.dumps(manifest))


def test_it_says_starting_until_it_is_ready(home: Path) -> None:
    slow_to_load(home)
    with started_server(home) as server:
        url = server.url()
        ready, live = httpx.get(f"{url}/health/ready"), httpx.get(f"{url}/health/live")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        assert live.status_code == 200
        early = httpx.post(f"{url}/classify", json=BODY)
        assert (early.status_code, early.json()["code"]) == (503, "unavailable")
        server.wait_until_ready()
        assert httpx.post(f"{url}/classify", json=BODY).status_code == 200
        assert server.end() == 0


def test_it_can_be_stopped_while_it_starts(home: Path) -> None:
    slow_to_load(home)
    with started_server(home) as server:
        server.url()
        assert server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(home: Path, number: signal.Signals) -> None:
    with started_server(home) as server:
        server.wait_until_ready()
        server.process.send_signal(number)
        assert server.wait(seconds=10) == 0
        assert "Traceback" not in server.log


def test_what_is_being_worked_on_is_answered_before_it_ends(home: Path) -> None:
    write_toy_model(home / "models", name="busy", work=12, size=128)
    answers: list[int] = []

    def ask() -> None:
        body = {"images": [BODY["image"]] * 60, "labels": ["cat"]}
        answers.append(httpx.post(f"{url}/classify", json=body, timeout=30).status_code)

    with started_server(home, models="busy") as server:
        server.wait_until_ready()
        url = server.url()
        client = threading.Thread(target=ask)
        client.start()
        while server.metric("admitted_items") < 60:
            assert client.is_alive()
        assert server.end() == 0
        client.join()
    assert answers == [200]


def test_it_ends_in_order_with_as_many_files_open_as_may_be(home: Path) -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with contextlib.ExitStack() as stack, started_server(home, prologue=few) as server:
        server.wait_until_ready()
        port = int(server.url().rpartition(":")[2])
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        files = Path(f"/proc/{server.process.pid}/fd")
        wait_until(lambda: len(list(files.iterdir())) == 64)
        assert server.end() == 0
        assert "Traceback" not in server.log


def test_a_second_signal_ends_it_at_once_and_an_echo_of_the_first_does_not(home: Path) -> None:
    with started_server(home, drain_seconds=30) as server:
        server.wait_until_ready()
        for _ in range(3):  # as GNU timeout tells its child, and then everyone in its group
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert httpx.get(f"{server.url()}/health/ready").json()["status"] == "draining"
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(seconds=10) == 0
        assert server.log.count("stopping at once") == 1


def test_while_it_drains_it_is_not_ready_but_answers(home: Path) -> None:
    with started_server(home, drain_seconds=1.5) as server:
        server.wait_until_ready()
        url = server.url()
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while (ready := httpx.get(f"{url}/health/ready")).status_code == 200:
            assert time.monotonic() - began < 1
        assert ready.json()["status"] == "draining"
        assert httpx.post(f"{url}/classify", json=BODY).status_code == 200
        assert server.wait(seconds=10) == 0
        assert time.monotonic() - began >= 1.4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"models": "toy,nothing"}, "no model named 'nothing'; known models: "),
        ({"default_template_set": "haiku"}, "none is named 'haiku'"),
        ({"port": "http"}, "CLIPSERVE_PORT: "),
        ({"template_sets_dir": "/nowhere/at/all"}, "no such folder"),
    ],
    ids=str,
)
def test_a_server_that_cannot_start_ends_with_1_and_a_sentence(
    home: Path, settings: dict[str, str], says: str
) -> None:
    with started_server(home, **settings) as server:
        assert server.wait() == 1
        assert says in server.log
        assert "Traceback" not in server.log


def test_a_damaged_model_is_not_served(home: Path) -> None:
    with (home / "models" / "toy" / "image.onnx").open("ab") as graph:
        graph.write(b"\0")
    with started_server(home) as server:
        assert server.wait() == 1
        assert "image.onnx does not match its SHA-256" in server.log


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_a_port_that_is_taken_ends_it_with_1(home: Path, setting: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        started_server(home, **{setting: taken.getsockname()[1]}) as server,
    ):
        assert server.wait() == 1
        assert "address already in use" in server.log.lower()
        assert "Traceback" not in server.log


def test_a_misspelt_variable_is_pointed_out(home: Path) -> None:
    with running_server(home, max_queu=5) as server:
        assert (
            "CLIPSERVE_MAX_QUEU is no setting and is ignored; did you mean CLIPSERVE_MAX_QUEUE?" in server.log
        )


async def test_it_stops_under_load_without_cutting_a_request_off(home: Path) -> None:
    """Every request that was sent is answered, on kept and on new connections; later ones are refused."""
    with started_server(home, drain_seconds=0.5) as server:
        server.wait_until_ready()
        url, cut_off, answered = server.url(), [], 0

        async def ask(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
            nonlocal answered
            while True:
                try:
                    answer = await client.post(f"{url}/classify", json=BODY, headers=headers)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    cut_off.append(repr(error))
                    return
                assert answer.status_code == 200
                answered += 1

        async with httpx.AsyncClient(timeout=20) as client, asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(ask(client, {"connection": "close"} if number % 2 else {}))
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
        assert server.wait(seconds=10) == 0
    assert answered > 100
    assert cut_off == []


TORCH_FREE = """
import atexit, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "open_clip", "transformers", "timm", "onnx"}:
            raise ImportError(name + " is only there for the export")

sys.meta_path.insert(0, Refuse())
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
"""


def test_serving_needs_nothing_of_what_the_export_needs(home: Path) -> None:
    with running_server(home, prologue=TORCH_FREE) as server:
        url = server.url()
        assert httpx.post(f"{url}/classify", json=BODY).status_code == 200
        assert httpx.post(f"{url}/embed", json={"inputs": [{"text": "a cat"}]}).status_code == 200
        assert httpx.put(f"{url}/classifiers/pets", json={"labels": ["cat"]}).status_code == 200
    packages = {name.partition(".")[0] for name in json.loads(server.output.strip().splitlines()[-1])}
    assert {"service", "models", "prompts", "onnxruntime"} <= packages
    assert not packages & {"torch", "torchvision", "open_clip", "transformers", "timm", "onnx"}

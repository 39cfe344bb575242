"""The real thing: ``clipserve serve`` in a process of its own, on a free port, over real sockets."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.apps import read_metric

_ROOT = Path(__file__).parent.parent
_LISTENING = re.compile(r"Uvicorn running on (http://[0-9.]+:[0-9]+)")
_STARTED = re.compile(r"Started server process \[([0-9]+)\]")
_ENGINE = re.compile(r'"the engine process is ready", "pid": ([0-9]+)')


class Server:
    """A server process. What it logs goes to ``home / "server.log"``."""

    def __init__(self, home: Path, *, prologue: str = "", **settings: Any) -> None:
        self._log = home / "server.log"
        given = {
            "home": home,
            "models": "toy",
            "port": 0,
            "runtime": "onnxruntime",
            "provider": "cpu",
            "inference_threads": 2,
            "decode_threads": 2,
            "access_log": False,
            "drain_seconds": 0,
        } | settings
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{prologue}\nfrom service.cli import main; main()", "serve"],
                cwd=_ROOT,
                env=_environment(given),
                stderr=log,
                stdout=subprocess.PIPE,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def workers(self) -> list[int]:
        """Every process that has served HTTP so far."""
        return [int(pid) for pid in _STARTED.findall(self.log)]

    @property
    def engines(self) -> list[int]:
        """Every engine process so far."""
        return [int(pid) for pid in _ENGINE.findall(self.log)]

    def url(self, *, seconds: float = 30.0) -> str:
        """Where it listens; waits until it does."""
        found = None
        for _ in _patiently(seconds, self):
            if (found := _LISTENING.search(self.log)) is not None:
                break
        assert found is not None
        return found[1]

    def wait_until_ready(self, *, seconds: float = 60.0) -> None:
        url = self.url()
        for _ in _patiently(seconds, self):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return

    def metric(self, name: str, **labels: str) -> float:
        return read_metric(httpx.get(f"{self.url()}/metrics").text, name, **labels)

    def end(self, *, seconds: float = 30.0) -> int:
        """Ask it to stop, as Docker does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def wait(self, *, seconds: float = 30.0) -> int:
        self.output = self.process.communicate(timeout=seconds)[0].decode()
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def started_server(home: Path, **settings: Any) -> Iterator[Server]:
    """A server process that has just been started; never left behind."""
    server = Server(home, **settings)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def running_server(home: Path, **settings: Any) -> Iterator[Server]:
    """A server that is ready. Stopping it at the end must succeed."""
    with started_server(home, **settings) as server:
        server.wait_until_ready()
        yield server
        assert server.end() == 0, server.log


@asynccontextmanager
async def clients(server: Server, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients with a connection each: a pool that they shared would search all of it for every request."""
    context = ssl.create_default_context()  # never used, but slow to make
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=server.url(), timeout=60, verify=context)
            )
            for _ in range(count)
        ]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], object], *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPSERVE_")}
    return kept | {f"CLIPSERVE_{name.upper()}": str(value) for name, value in settings.items()}


def _patiently(seconds: float, server: Server) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended by itself:\n{server.log}")
        yield
        time.sleep(0.005)
    raise AssertionError(f"the server took longer than {seconds} s:\n{server.log}")


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]

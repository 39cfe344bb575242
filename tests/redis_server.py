"""A real redis-server of the tests' own, on a free port of the loopback interface."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.programs import debian_program, free_port


class RedisServer:
    """Keeps nothing on disk: stopped, it forgets everything."""

    def __init__(self, folder: Path) -> None:
        self._program = debian_program("redis-server")
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": self._folder}
        self._process = subprocess.Popen(
            [self._program, *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
            stdout=subprocess.DEVNULL,
        )
        with self.client() as client:
            end = time.monotonic() + 10
            while not _answers(client):
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.01)

    def client(self) -> Redis:
        return Redis.from_url(self.url)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections stay open, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False

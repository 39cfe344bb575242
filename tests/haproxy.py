"""The HAProxy of ``docker/haproxy.cfg``, in front of replicas on the loopback interface."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.programs import debian_program, free_port

_CONFIG = Path(__file__).parents[1] / "docker" / "haproxy.cfg"


class HAProxy:
    """Replica i of ``ports`` is called ``replica-i``."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.port, self.stats_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "haproxy.cfg"
        config.write_text(self._config(ports))
        with (folder / "haproxy.log").open("wb") as log:
            command = [debian_program("haproxy"), "-db", "-f", config]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def _config(self, ports: Sequence[int]) -> str:
        """The file as it is, but for addresses."""
        replicas = "".join(f"    server replica-{i} 127.0.0.1:{port}\n" for i, port in enumerate(ports))
        text = _CONFIG.read_text()
        for old, new in (
            (r"bind :8000", f"bind 127.0.0.1:{self.port}"),
            (r"bind :8404", f"bind 127.0.0.1:{self.stats_port}"),
            (r"    server-template .*\n", replicas),
        ):
            text, count = re.subn(old, new, text)
            assert count == 1, old
        return text

    def status(self, replica: int) -> str:
        """``UP``, ``DOWN``, or one of these with what is on its way, as in ``UP 1/2``."""
        table = httpx.get(f"http://127.0.0.1:{self.stats_port}/;csv").text.removeprefix("# ").splitlines()
        columns = table[0].split(",")
        for line in table[1:]:
            row = dict(zip(columns, line.split(","), strict=False))
            if row["svname"] == f"replica-{replica}":
                return row["status"]
        raise AssertionError(f"no replica-{replica} in {table}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)


@contextmanager
def running_haproxy(folder: Path, ports: Sequence[int]) -> Iterator[HAProxy]:
    haproxy = HAProxy(folder, ports)
    try:
        yield haproxy
    finally:
        haproxy.stop()

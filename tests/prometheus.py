"""The Prometheus of ``docker/prometheus.yml``, with targets on the loopback interface."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.programs import debian_program, free_port

_DOCKER = Path(__file__).parents[1] / "docker"


@contextmanager
def running_prometheus(folder: Path, ports: Mapping[str, Sequence[int]]) -> Iterator[Callable[..., Any]]:
    """Scrapes the ports of each job; gives what asks its API: ``ask("query", query="up")``."""
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_config(ports)))
    address = f"127.0.0.1:{free_port()}"
    options = {
        "config.file": config,
        "storage.tsdb.path": folder / "prometheus",
        "web.listen-address": address,
    }
    with (folder / "prometheus.log").open("wb") as log:
        program = debian_program("prometheus")
        command = [program, *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(path: str, **parameters: str) -> Any:
        answer = httpx.get(f"http://{address}/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    try:
        _wait_until_ready(f"http://{address}/-/ready")
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=20)


def _config(ports: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The file as it is, but for addresses, and a faster clock."""
    config: dict[str, Any] = yaml.safe_load((_DOCKER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(_DOCKER / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        targets = [f"127.0.0.1:{port}" for port in ports[job["job_name"]]]
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": targets}]
    return config


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("Prometheus is not ready")

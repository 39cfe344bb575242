"""What of the image can be wrong without anything failing until it is deployed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
ALLOWED = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, flags=re.MULTILINE)


def stage(name: str) -> str:
    return DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]


def copied() -> set[str]:
    return {
        source
        for arguments in instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }


def test_variables_of_the_image_are_settings() -> None:
    """Settings ignore variables that they do not know, so a misspelt one would have no effect at all."""
    names = re.findall(r"\bCLIPSERVE_(\w+)=", DOCKERFILE)
    assert "HOST" in names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_the_build_context_is_what_is_copied() -> None:
    assert copied() == ALLOWED


def test_what_is_copied_is_there() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_every_package_of_the_distribution_is_copied() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {pattern.rstrip("*") for pattern in find["include"]} <= copied()


def test_cpu_is_the_default_target() -> None:
    assert instructions("FROM")[-1].endswith(" AS cpu")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_targets_end_as_a_user_without_rights(target: str) -> None:
    """By number: Kubernetes' ``runAsNonRoot`` does not look names up."""
    user = re.findall(r"^USER (\d+):\d+$", stage(target), flags=re.MULTILINE)[-1]
    assert int(user) > 0
    assert f"--uid {user} " in stage("runtime")


def probe(port: int, **environment: str) -> int:
    script = ROOT / "docker" / "healthcheck.py"
    environment["CLIPSERVE_PORT"] = str(port)
    return subprocess.run(
        [sys.executable, "-I", script], env=environment, capture_output=True, timeout=30, check=False
    ).returncode


@contextmanager
def server(status: int) -> Iterator[int]:
    """Answers ``status`` to ``/health/ready`` and 404 to all else; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield http.server_port
        finally:
            http.shutdown()
            thread.join()


def test_health_check_passes_when_ready_whatever_proxy_is_set() -> None:
    with server(200) as port:
        assert probe(port, http_proxy="http://127.0.0.1:9") == 0


def test_health_check_fails_when_not_ready() -> None:
    with server(503) as port:
        assert probe(port) == 1


def test_health_check_fails_when_nothing_listens() -> None:
    with server(200) as port:
        pass
    assert probe(port) == 1

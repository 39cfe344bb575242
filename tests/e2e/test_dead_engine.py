"""A server whose engine hangs says so, and ends itself, so that whatever runs it starts another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.apps import base64
from tests.pictures import png
from tests.programs import free_port
from tests.toy_models import write_toy_model

_HANGING_SERVER = """
import threading
from models.registry import LoadedModel
from service.cli import main

encode = LoadedModel.encode_pixels
warm = threading.Event()

def encode_once(self, pixels):
    if warm.is_set():
        threading.Event().wait()
    warm.set()
    return encode(self, pixels)

LoadedModel.encode_pixels = encode_once
main()
"""


def test_a_batch_that_hangs_ends_the_process(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models")
    port = free_port()
    environment = {
        **os.environ,
        "CLIPSERVE_HOME": str(tmp_path),
        "CLIPSERVE_MODELS": "toy",
        "CLIPSERVE_PORT": str(port),
        "CLIPSERVE_RUNTIME": "onnxruntime",
        "CLIPSERVE_STALL_TIMEOUT": "0.5",
        "CLIPSERVE_REQUEST_TIMEOUT": "2",
    }
    process = subprocess.Popen([sys.executable, "-c", _HANGING_SERVER, "serve"], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url)
        body = {"image": {"base64": base64(png())}, "labels": ["cat"]}
        answer = httpx.post(f"{url}/classify", json=body, timeout=20)
        assert answer.status_code in {503, 504}
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")

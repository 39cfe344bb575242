"""Programs of other makers that tests run for real, on ports of the loopback interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest


def debian_program(name: str, *, package: str | None = None) -> str:
    """Where a program of Debian is; installed where that is possible, the test skipped where it is not."""
    if found := _which(name):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package or name]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(install, env=environment, capture_output=True, timeout=240, check=False)
    if found := _which(name):
        return found
    pytest.skip(f"{name} is not installed: apt-get install {package or name}")


def installed_program(name: str) -> str:
    """Where a program is; the test is skipped where it is not installed."""
    return _which(name) or pytest.skip(f"{name} is not installed")


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

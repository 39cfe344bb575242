"""A virtual environment a peer, made once and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.registry import Peer


class InstallError(Exception):
    """A peer's packages cannot be installed here."""


def bin_folder(peer: Peer, var: Path) -> Path:
    """``bin`` of the peer's environment, which is made if it is not there.

    Raises:
        InstallError: pip failed; the text has its last line.
    """
    folder = var / "peers" / peer.environment
    stamp = folder / ".installed"
    if not stamp.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(folder / "bin" / "pip"), "install", "--quiet", *peer.packages])
        stamp.touch()
    return folder / "bin"


def versions(peer: Peer, folder: Path) -> dict[str, str]:
    """The versions of the packages that make the peer what it is."""
    script = "import json, sys; from importlib.metadata import version"
    script += "; print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(_run([str(folder / "python"), "-c", script, *peer.shown]))
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise InstallError(last)
    return done.stdout

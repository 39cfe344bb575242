"""``clipserve embed`` as a process, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.toy_models import write_toy_model

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command in a folder of its own, with a toy model and nothing from outside."""

    folder: Path
    prologue: str = ""

    def start(self, *arguments: object, **popen: Any) -> subprocess.Popen[bytes]:
        if not (self.folder / "models").exists():
            write_toy_model(self.folder / "models")
        code = f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n{self.prologue}\n"
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{code}from service.cli import main; main()",
                "embed",
                *map(str, arguments),
            ],
            cwd=self.folder,
            env=_environment(self.folder),
            stderr=subprocess.PIPE,
            **popen,
        )

    def run(self, *arguments: object, given: bytes = b"") -> tuple[int, str]:
        """Exit status and what was said."""
        process = self.start(*arguments, stdin=subprocess.PIPE)
        try:
            said = process.communicate(given, timeout=120)[1].decode()
        finally:
            process.kill()
        return process.returncode, said


def _environment(home: Path) -> dict[str, str]:
    settings = {
        "home": home,
        "models": "toy",
        "runtime": "onnxruntime",
        "provider": "cpu",
        "inference_threads": 1,
        "decode_threads": 2,
        "max_batch": 4,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPSERVE_")}
    return kept | {f"CLIPSERVE_{name.upper()}": str(value) for name, value in settings.items()}


def rows(path: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """Key and embedding of each row."""
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    return list(zip(table["key"].to_pylist(), vectors, strict=True))


def keys(path: Path) -> list[str]:
    return pq.read_table(path, columns=["key"])["key"].to_pylist()


def failures(path: Path) -> dict[str, str]:
    """Reason by key; no key comes twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["key"]: line["reason"] for line in lines}
    assert len(found) == len(lines)
    return found

"""Every architecture of the table, at full size: hours on a small machine. Run with ``make test-zoo``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

pytest.importorskip("open_clip", reason="needs the extra 'export'")
pytestmark = [pytest.mark.zoo, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_the_architecture_exports_with_parity(architecture: str) -> None:
    """In a process of its own, so that no model's memory is still there for the next."""
    done = subprocess.run(
        [sys.executable, str(Path(zoo.__file__)), architecture],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # a table is made beside other work
    )
    row = json.loads(done.stdout)
    zoo.keep(row)
    assert "reason" not in row, row["reason"]

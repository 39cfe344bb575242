"""The decoder alone, many times faster than over HTTP, so that a fuzzer can learn what leads deeper."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 100_000
_ROOT = Path(__file__).parents[2]


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_the_decoder_gives_pixels_or_refuses(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="make fuzz installs it where it exists")
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", str(RUNS), str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-5000:]
    assert re.search(rf"Done {RUNS} runs", done.stderr)

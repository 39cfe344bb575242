"""Processes that open the same model at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from models.locks import one_at_a_time
from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions
from tests.toy_models import write_toy_model

_HOLDER = """
import sys, time
from pathlib import Path
from models.locks import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    write_toy_model(tmp_path)
    options = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1, cache_dir=tmp_path / "cache")
    return ModelRegistry(tmp_path, options=options)


def test_a_model_waits_for_whoever_fills_its_cache_and_not_for_the_dead(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / registry.manifest("toy").digest[:32]
    loading = threading.Thread(target=registry.load, args=("toy",))
    with subprocess.Popen([sys.executable, "-c", _HOLDER, folder], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"in\n"
            loading.start()
            loading.join(0.3)
            assert loading.is_alive()
        finally:
            holder.kill()
    loading.join(20)
    assert not loading.is_alive()
    assert registry.get("toy").name == "toy"


def test_a_folder_that_cannot_be_written_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "within"):
        with one_at_a_time(folder), one_at_a_time(folder):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

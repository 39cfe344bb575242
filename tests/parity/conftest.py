from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """open_clip knows ``tiny-vit`` and the other architectures of ``architectures_under_test``."""
    torch = pytest.importorskip("torch", reason="needs the extra 'export'")
    torch.set_num_threads(1)  # the models are tiny: more threads would only wait for each other
    import architectures_under_test

    folder: Path = tmp_path_factory.mktemp("hub")
    with architectures_under_test.registered(folder):
        yield

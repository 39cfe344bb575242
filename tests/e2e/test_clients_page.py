"""``docs/clients.md``: what its examples print is what it says they print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server, running_server

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"```python\n(.*?)```\n\n```text\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("clients"), models="shapes", runtime="auto") as server:
        yield server


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) == (ROOT / "docs" / "clients.md").read_text().count("```python") == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # examples leave closing to the end of the program
@pytest.mark.parametrize(("example", "printed"), EXAMPLES)
def test_an_example_prints_what_the_page_says(
    server: Server,
    example: str,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(example.replace("http://127.0.0.1:8000", server.url()), "clients.md", "exec"), {})
    assert capsys.readouterr().out == printed

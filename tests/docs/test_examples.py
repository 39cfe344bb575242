"""Every command and every JSON block of the pages: executed, and compared with what the page shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.docs.answers import check, is_like, last_json, read_shown
from tests.docs.commands import check_commands, check_span
from tests.docs.pages import PAGES, Block, Page
from tests.docs.reader import reader_in

_LANGUAGES = {"sh", "python", "json", "text", "yaml"}
_REASONS = {
    "needs Docker",
    "needs a cluster",
    "needs a collector",
    "needs a GPU",
    "needs a model hub",
    "needs a Weaviate",
    "placeholders",
    "sets up a machine",
    "takes minutes",
    "takes hours",
}
_BLOCKS = [block for page in PAGES for block in page.blocks]
_TRIED = [page for page in PAGES if any(block.language in {"sh", "python"} for block in page.blocks)]
_SLOW = [page for page in _TRIED if any(block.slow for block in page.blocks)]


@pytest.mark.parametrize("page", _TRIED, ids=str)
def test_what_a_page_says_is_what_happens(page: Page, tmp_path: Path) -> None:
    with reader_in(tmp_path) as reader:
        reader.start_server()
        reader.read(page, slow=False)


@pytest.mark.e2e
@pytest.mark.parametrize("page", _SLOW, ids=str)
def test_what_a_page_says_is_what_happens_where_it_takes_long(page: Page, tmp_path: Path) -> None:
    _write_checkpoint(tmp_path / "my-run" / "epoch_10.pt")
    with reader_in(tmp_path) as reader:
        reader.start_server()
        reader.read(page, slow=True)


def _write_checkpoint(path: Path) -> None:
    """What training with open_clip leaves behind, of random weights."""
    open_clip = pytest.importorskip("open_clip")
    import torch

    path.parent.mkdir()
    state = open_clip.create_model("ViT-B-32").state_dict()
    torch.save({"epoch": 10, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


@pytest.mark.parametrize("block", _BLOCKS, ids=str)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in _LANGUAGES
    assert block.marker is None or block.not_executed or block.file or block.slow, block.marker
    assert block.not_executed is None or block.not_executed in _REASONS


def test_few_blocks_are_not_executed() -> None:
    commands = [block for block in _BLOCKS if block.language in {"sh", "python", "json"}]
    reasons = Counter(block.not_executed for block in commands if block.not_executed)
    print(f"{len(commands)} blocks, not executed: {dict(reasons)}")
    assert reasons.total() < len(commands) / 3


@pytest.mark.parametrize(
    "block", [block for block in _BLOCKS if block.not_executed and block.language == "sh"], ids=str
)
def test_what_is_not_executed_exists(block: Block) -> None:
    check_commands(block.text)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_within_sentences_exist(page: Page) -> None:
    for span in page.code:
        check_span(span)


@pytest.mark.parametrize(
    "command",
    [
        "clipserve serv",
        "clipserve serve --modell shapes",
        "clipserve classify samples",
        "make sure",
        "pip install '.[cpu,exports]'",
        "docker build --target tpu .",
        "docker run --rm clipserve model list",
        "docker compose --file docker/composer.yaml up",
        "sudo make run",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        check_commands(f"cd folder && NAME=value {command}  # a comment")


@pytest.mark.parametrize(
    "span", ["make sure", "clipserve serv", "clipserve eval … --raport", "pytest tests/no.py"]
)
def test_a_span_that_does_not_exist_is_found(span: str) -> None:
    with pytest.raises(AssertionError):
        check_span(span)


@pytest.mark.parametrize(
    ("shown", "answer"),
    [
        ('{"a": 0.70}', '{"a": 0.698}'),
        ('{"a": 0, "…": "…"}', '{"a": 0, "b": 1}'),
        ('[1, "…"]', "[1, 2, 3]"),
        ('{"a": "…"}', '{"a": [1]}'),
        ('{"a": "one … three"}', '{"a": "one two three"}'),
    ],
)
def test_an_answer_like_the_one_shown_is_accepted(shown: str, answer: str) -> None:
    check(read_shown(shown), last_json(f"first {{}} then\n{answer}\n"))


@pytest.mark.parametrize(
    ("shown", "answer"),
    [
        ('{"a": 0.70}', '{"a": 0.708}'),
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 0}', '{"a": 0, "b": 1}'),
        ('{"a": 0, "…": "…"}', '{"a": 0}'),
        ('[1, "…"]', "[1]"),
        ("[1]", "[1, 2]"),
        ('{"a": "one … three"}', '{"a": "one two"}'),
    ],
)
def test_an_answer_unlike_the_one_shown_is_not(shown: str, answer: str) -> None:
    with pytest.raises(AssertionError):
        check(read_shown(shown), last_json(answer))


def test_a_text_is_compared_but_for_what_is_left_out() -> None:
    assert is_like("took … s\n", "took 1.5 s\n")
    assert not is_like("took … s\n", "took 1.5 s\nand more\n")

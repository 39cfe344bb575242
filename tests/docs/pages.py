"""The Markdown pages of this repository, taken apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
_PARSER = MarkdownIt("commonmark").enable("table")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. ``marker``: the HTML comment right above it; ``lines``: its first and its last."""

    page: str
    lines: tuple[int, int]
    language: str
    text: str
    marker: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.lines[0]}"

    @property
    def not_executed(self) -> str | None:
        """Why nothing can run it in a test."""
        return self._marked("not executed")

    @property
    def file(self) -> str | None:
        """The name of the file whose content it is."""
        return self._marked("file")

    @property
    def slow(self) -> bool:
        return self.marker == "slow"

    def _marked(self, kind: str) -> str | None:
        found, _, value = (self.marker or "").partition(": ")
        return value if found == kind else None


@dataclass(frozen=True)
class Page:
    """One page, named by its path from the root of the repository."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return list(self._blocks())

    @cached_property
    def anchors(self) -> set[str]:
        """What ``#…`` can name here, as GitHub makes it of headings."""
        seen: Counter[str] = Counter()
        anchors = set()
        for heading, content in zip(self._tokens, self._tokens[1:], strict=False):
            if heading.type == "heading_open":
                plain = "".join(child.content for child in content.children or ())
                slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
                anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
                seen[slug] += 1
        return anchors

    @property
    def targets(self) -> Iterator[str]:
        """Where links and pictures lead."""
        for token in self._inline:
            target = token.attrGet("href") or token.attrGet("src")
            if isinstance(target, str):
                yield target
        yield from re.findall(r'(?:src|srcset)="([^"]+)"', self.text)

    @property
    def code(self) -> list[str]:
        """Every code span."""
        return [token.content for token in self._inline if token.type == "code_inline"]

    def table(self, first_column: str) -> list[list[str]]:
        """The rows of the table whose first column has this title."""
        rows: list[list[str]] = []
        for number, token in enumerate(self._tokens):
            if token.type == "tr_open":
                rows.append([])
            elif token.type in {"th_open", "td_open"}:
                rows[-1].append(self._tokens[number + 1].content)
            elif token.type == "table_close":
                if rows[0][0] == first_column:
                    return rows[1:]
                rows = []
        raise AssertionError(f"{self.name} has no table that begins with {first_column!r}")

    @cached_property
    def _tokens(self) -> list[Token]:
        return _PARSER.parse(self.text)

    @property
    def _inline(self) -> Iterator[Token]:
        for token in self._tokens:
            yield from token.children or ()

    def _blocks(self) -> Iterator[Block]:
        before: Token | None = None
        for token in self._tokens:
            if token.type == "fence":
                assert token.map is not None
                comment = _COMMENT.fullmatch(before.content.strip()) if _is_comment(before) else None
                yield Block(
                    page=self.name,
                    lines=(token.map[0] + 1, token.map[1]),
                    language=token.info.strip(),
                    text=token.content,
                    marker=comment[1] if comment else None,
                )
            before = token


def _is_comment(token: Token | None) -> bool:
    return token is not None and token.type == "html_block"


PAGES = [
    Page(str(path.relative_to(ROOT)))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
]

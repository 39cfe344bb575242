"""What the pages name exists, and what must be on a page is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from service.errors import STATUSES
from service.metrics import Metrics
from service.settings import Settings
from tests.apps import serving
from tests.docs.pages import PAGES, ROOT, Page

_OTHERS = ("CHANGELOG.md", "benchmarks/README.md", "models/shapes/files/README.md")
_EVERY_PAGE = [*PAGES, *map(Page, _OTHERS)]
_OF_OTHERS = {"CLIPSERVE_KEY"}  # read by the programs that the playground writes, not by the server


@pytest.mark.parametrize("page", _EVERY_PAGE, ids=str)
def test_links_lead_somewhere(page: Page) -> None:
    for target in page.targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        place = (page.path.parent / path).resolve() if path else page.path
        assert place.exists(), f"{page}: {target}"
        assert place.is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in Page(str(place.relative_to(ROOT))).anchors, f"{page}: {target}"


@pytest.mark.parametrize("page", _EVERY_PAGE, ids=str)
def test_pages_named_in_sentences_exist(page: Page) -> None:
    for name in re.findall(r"\bdocs/[a-z0-9-]+\.md\b", page.text):
        assert (ROOT / name).is_file(), f"{page}: {name}"


def test_the_readme_lists_every_page() -> None:
    listed = set(Page("README.md").targets)
    assert {str(page) for page in PAGES} - {"README.md"} <= listed


@pytest.mark.parametrize("page", _EVERY_PAGE, ids=str)
def test_settings_named_exist(page: Page) -> None:
    known = {f"CLIPSERVE_{name.upper()}" for name in Settings.model_fields} | _OF_OTHERS
    named = set(re.findall(r"\bCLIPSERVE_[A-Z_]*[A-Z]\b", page.text))
    assert named <= known


@pytest.mark.parametrize("page", _EVERY_PAGE, ids=str)
def test_metrics_named_exist(page: Page) -> None:
    suffixes = ("", "_total", "_bucket", "_count", "_sum")
    known = {f"{metric.name}{suffix}" for metric in Metrics().registry.collect() for suffix in suffixes}
    assert set(re.findall(r"\bclipserve_[a-z_]*[a-z]\b", page.text)) <= known


def test_the_table_of_settings_is_what_clipserve_config_says() -> None:
    known = [
        [f"`CLIPSERVE_{name.upper()}`", _default(name), str(field.description)]
        for name, field in Settings.model_fields.items()
    ]
    documented = Page("docs/settings.md").table("setting")
    missing = "\n".join(f"| {' | '.join(row)} |" for row in known if row not in documented)
    assert documented == known, f"docs/settings.md lacks, in the order of clipserve config:\n{missing}"


def _default(name: str) -> str:
    value = Settings.model_fields[name].default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def test_the_table_of_errors_is_the_servers_own() -> None:
    documented = {(int(status), code.strip("`")) for status, code, _ in Page("docs/api.md").table("status")}
    known = {(one.status, one.code) for one in STATUSES} | {(404, "not_found"), (405, "method_not_allowed")}
    assert documented == known


async def test_every_route_is_on_the_page_of_the_api(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=False) as client:
        document = (await client.get("/openapi.json")).json()
    page = Page("docs/api.md").text
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in page, f"{method.upper()} {path}"

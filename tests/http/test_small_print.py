"""What probes, crawlers and slips of the keyboard meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.apps import serving


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_probes_may_ask_for_the_head_alone(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path) as client:
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_no_redirect_follows_the_host_of_a_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.get("/classifiers/", headers={"Host": "evil.example"})
        assert "location" not in answer.headers
        assert answer.status_code in {404, 405}


def test_embed_looks_for_the_folder_before_it_works(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "x.parquet"
    done = CliRunner().invoke(app, ["embed", "--text", "a", "--out", str(out)])
    assert done.exit_code == 2
    assert "--out" in done.output

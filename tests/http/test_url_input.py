"""Pictures by address over HTTP: off by default, each failure its own, nothing told of what lies inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.fetch import FetchLimits, PictureFetcher
from tests.apps import Client, base64, serving, until
from tests.pictures import png
from tests.web import FORBIDDEN, PUBLIC, Web, endless, page, redirect, silent, web

LIMIT = 50_000


@pytest.fixture
async def site() -> AsyncIterator[Web]:
    async with web(PUBLIC) as site:
        for seed in range(3):
            site.pages[f"/{seed}.png"] = page(png(seed))
        yield site


@asynccontextmanager
async def fetching(home: Path, site: Web, **settings: Any) -> AsyncIterator[Client]:
    """A server to which ``PUBLIC`` is the internet."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [PUBLIC] if host == "pictures.test" else [FORBIDDEN]

    async with serving(home, **settings) as client:
        limits = FetchLimits(max_bytes=LIMIT, read_seconds=0.2, total_seconds=0.4)
        client.services.inputs = type(client.services.inputs)(
            client.services.settings,
            PictureFetcher(
                limits=limits,
                ports=(site.port,),
                resolve=resolve,
                accept=lambda address: str(address) == PUBLIC,
            ),
        )
        yield client


def at(site: Web, path: str) -> dict[str, str]:
    return {"url": f"http://pictures.test:{site.port}{path}"}


async def test_it_is_off_by_default(client: Client) -> None:
    body = {"image": {"url": "http://1.1.1.1/cat.png"}, "labels": ["a"]}
    answer = await client.post("/classify", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "url_forbidden")
    assert answer.json()["detail"].startswith("image.url: this server does not fetch")


async def test_the_setting_turns_it_on_and_lists_hosts(tmp_path: Path) -> None:
    async with serving(tmp_path, urls="*.pictures.test") as client:
        body = {"image": {"url": "http://other.test/cat.png"}, "labels": ["a"]}
        answer = await client.post("/classify", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "url_forbidden")
        assert "not among those" in answer.json()["detail"]


async def test_a_picture_by_address_is_classified_as_its_file_is(tmp_path: Path, site: Web) -> None:
    async with fetching(tmp_path, site) as client:
        sources = [at(site, "/1.png"), {"base64": base64(png(1))}, at(site, "/2.png")]
        answer = await client.post("/classify", json={"images": sources, "labels": ["a", "b"]})
        first, same, other = (one["predictions"] for one in answer.json()["results"])
        assert first == same != other
        assert "fetch;dur=" in answer.headers["server-timing"]


async def test_and_embedded_among_texts_in_its_place(tmp_path: Path, site: Web) -> None:
    async with fetching(tmp_path, site) as client:
        inputs = [{"text": "a"}, {"image": at(site, "/1.png")}, {"image": {"base64": base64(png(1))}}]
        text, fetched, sent = (await client.post("/embed", json={"inputs": inputs})).json()["embeddings"]
        assert (text["kind"], fetched["kind"]) == ("text", "image")
        assert fetched["embedding"] == pytest.approx(sent["embedding"], abs=1e-6)


async def test_each_failure_is_its_own_items_error(tmp_path: Path, site: Web) -> None:
    site.pages |= {
        "/endless": endless(),
        "/slow": silent(),
        "/text": page(b"hello, I am a text"),
        "/inside": redirect(f"http://inside.test:{site.port}/"),
        "/metadata": redirect("http://169.254.169.254/latest/meta-data/"),
    }
    expected = {
        "/0.png": None,
        "/endless": ("too_large", "url_too_large"),
        "/slow": ("url_timeout", "url_timeout"),
        "/text": ("unsupported_image_format", None),
        "/inside": ("url_forbidden", "url_forbidden"),
        "/metadata": ("url_forbidden", "url_forbidden"),
        "/missing": ("url_failed", "url_failed"),
        "/1.png": None,
    }
    async with web(FORBIDDEN) as trap, fetching(tmp_path, site) as client:
        sources = [at(site, path) for path in expected]
        sources += [{"url": f"http://127.0.0.1:{trap.port}/"}, {"url": "file:///etc/passwd"}]
        answer = await client.post("/classify", json={"images": sources, "labels": ["a"]})
        assert answer.status_code == 200
        errors = [one.get("error") for one in answer.json()["results"]]
        codes = [error and error["code"] for error in errors]
        assert codes == [*(one and one[0] for one in expected.values()), "url_forbidden", "url_forbidden"]
        assert errors[2]["message"].startswith("images[2].url: its server took too long")
        assert FORBIDDEN not in answer.text
        assert "169.254" not in answer.text
        assert trap.connections == 0
        counts = {"url_forbidden": 4, "url_failed": 1, "url_timeout": 1, "url_too_large": 1}
        for reason, count in counts.items():
            assert await client.metric("rejected_total", reason=reason) == count


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/missing", 422, "url_failed"), ("/slow", 504, "url_timeout"), ("/endless", 413, "too_large")],
)
async def test_a_single_picture_that_cannot_be_fetched_fails_the_request(
    tmp_path: Path, site: Web, path: str, status: int, code: str
) -> None:
    site.pages |= {"/slow": silent(), "/endless": endless()}
    async with fetching(tmp_path, site) as client:
        answer = await client.post("/classify", json={"image": at(site, path), "labels": ["a"]})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["detail"].startswith("image.url: ")
        assert await client.metric("rejected_total", reason=f"url_{code.removeprefix('url_')}") == 1


async def test_nothing_is_fetched_for_a_request_that_is_wrong_anyway(tmp_path: Path, site: Web) -> None:
    async with fetching(tmp_path, site) as client:
        answer = await client.post("/classify", json={"image": at(site, "/0.png"), "labels": ["a", "a"]})
        assert answer.json()["code"] == "invalid_labels"
        assert site.connections == 0


async def test_while_one_request_fetches_others_are_answered(tmp_path: Path, site: Web) -> None:
    site.pages["/slow"] = silent()
    async with fetching(tmp_path, site) as client:
        slow = asyncio.create_task(
            client.post("/classify", json={"images": [at(site, "/slow")] * 4, "labels": ["a"]})
        )
        await until(lambda: site.requests)
        body = {"image": {"base64": base64(png())}, "labels": ["a"]}
        assert (await client.post("/classify", json=body)).status_code == 200
        assert not slow.done()
        assert [one["error"]["code"] for one in (await slow).json()["results"]] == ["url_timeout"] * 4


async def test_the_pictures_of_a_request_may_not_outgrow_its_body(tmp_path: Path, site: Web) -> None:
    size = len(png(0))
    async with fetching(tmp_path, site, max_body_bytes=2 * size + size // 2) as client:
        images = [at(site, "/0.png")] * 3
        answer = await client.post("/classify", json={"images": images, "labels": ["a"]})
        codes = [one.get("error", {}).get("code") for one in answer.json()["results"]]
        assert sorted(codes, key=str) == [None, None, "too_large"]

"""The page at ``/``: how it is sent, and who may have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.keys import new_key
from tests.apps import Client, serving

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "service" / "playground"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*"))
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
}


async def test_the_page_is_served_at_the_root(client: Client) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == TYPES["html"]
    assert answer.content == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize("name", FILES)
async def test_every_file_has_its_type_and_the_policy(client: Client, name: str) -> None:
    answer = await client.get(f"/playground/{name}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[name.rpartition(".")[2]]
    policy = answer.headers.get_list("content-security-policy")
    assert len(policy) == 1
    assert "default-src 'none'" in policy[0]
    assert "script-src 'self'" in policy[0]
    assert "frame-ancestors 'none'" in policy[0]
    assert not {"unsafe-inline", "unsafe-eval", "*", "http", "data:"} & set(re.split(r"[;' ]+", policy[0]))
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_what_did_not_change_is_not_sent_again(client: Client) -> None:
    tag = (await client.get("/")).headers["etag"]
    assert tag != (await client.get("/playground/app.js")).headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = await client.get("/", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get("/", headers={"if-none-match": '"other"'})).status_code == 200


async def test_its_head_may_be_asked_for_alone(client: Client) -> None:
    answer = await client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == (FOLDER / "index.html").stat().st_size


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/playground/",
        "/playground/nowhere.js",
        "/playground/../settings.py",
        "/playground/%2e%2e/app.py",
    ],
)
async def test_nothing_else_is_there(client: Client, path: str) -> None:
    request = client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await client.send(request)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["cache-control"] == "no-store"


async def test_switched_off_there_is_no_page(tmp_path: Path) -> None:
    async with serving(tmp_path, playground="off") as client:
        assert (await client.get("/")).status_code in {404, 405}
        assert (await client.get("/playground/app.js")).status_code == 404


async def test_the_page_takes_no_key_but_nothing_beside_it_does(tmp_path: Path) -> None:
    _, entry = new_key("shop")
    async with serving(tmp_path, api_keys=(entry,)) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/playground/app.js")).status_code == 200
        for method, path in [
            ("POST", "/"),
            ("POST", "/playground/app.js"),
            ("GET", "/models"),
        ]:
            assert (await client.request(method, path)).status_code == 401, (method, path)


async def test_switched_off_its_addresses_take_a_key_like_any(tmp_path: Path) -> None:
    _, entry = new_key("shop")
    async with serving(tmp_path, api_keys=(entry,), playground="off") as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/playground/app.js")).status_code == 401


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".html", ".css", ".js", ".svg"))])
def test_no_file_names_an_outside_address(name: str) -> None:
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z0-9]", text)


def test_the_page_refers_to_files_that_are_there_and_by_relative_addresses() -> None:
    page = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert "playground/app.js" in named
    assert [address for address in named if not (FOLDER.parent / address).is_file()] == []


def test_the_samples_are_those_of_the_repository() -> None:
    for picture in (FOLDER / "samples").iterdir():
        assert picture.read_bytes() == (ROOT / "samples" / picture.name).read_bytes()

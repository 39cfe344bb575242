"""Pictures by address: what is fetched, what is not, and that nothing forbidden is ever connected to."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import httpcore
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from service.addresses import Address, is_public
from service.errors import TooLargeError, UrlFailedError, UrlForbiddenError, UrlTimeoutError
from service.fetch import ByteBudget, FetchLimits, PictureFetcher, Resolver
from service.urls import Url, is_host_pattern, matches
from tests.web import FORBIDDEN, PUBLIC, Web, endless, page, pieces, redirect, silent, web

PICTURE = b"\x89PNG and so on"


@pytest.fixture
async def site() -> AsyncIterator[Web]:
    """What the tests take for the internet."""
    async with web(PUBLIC) as site:
        site.pages["/cat.png"] = page(PICTURE)
        yield site


@pytest.fixture
async def trap() -> AsyncIterator[Web]:
    """A service inside; it would have an answer to everything."""
    async with web(FORBIDDEN) as trap:
        trap.pages["/cat.png"] = trap.pages["/"] = page(b"secret")
        yield trap


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every address that a connection was tried to; none may be forbidden, whatever a test does."""
    tried: list[str] = []
    connect = httpcore.AnyIOBackend.connect_tcp

    async def spy(self: httpcore.AnyIOBackend, host: str, *args: Any, **options: Any) -> Any:
        tried.append(host)
        return await connect(self, host, *args, **options)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", spy)
    yield tried
    assert [host for host in tried if host != PUBLIC] == []


def names(**hosts: str | Sequence[str]) -> Resolver:
    """A resolver that knows these names, ``_`` for the dot, and no others."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        found = hosts.get(host.replace(".", "_"))
        if found is None:
            raise OSError("Name or service not known")
        return [found] if isinstance(found, str) else found

    return resolve


def accept(address: Address) -> bool:
    return is_public(address) or str(address) == PUBLIC


def fetcher(site: Web, **options: Any) -> PictureFetcher:
    given: dict[str, Any] = {
        "resolve": names(pictures_test=PUBLIC),
        "accept": accept,
        "ports": (site.port,),
        "limits": FetchLimits(max_bytes=1000, connect_seconds=1, read_seconds=0.3, total_seconds=0.6),
        "tls": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    }
    return PictureFetcher(**given | options)


# What is fetched


async def test_a_picture_is_fetched_with_a_plain_request(site: Web) -> None:
    site.pages["/a%20b?size=1"] = page(PICTURE)
    url = f"http://pictures.test:{site.port}/a%20b?size=1#part"
    assert await fetcher(site).fetch(url) == PICTURE
    request, *headers = site.requests[0].rstrip().split("\r\n")
    assert request == "GET /a%20b?size=1 HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity",
        "Accept: image/*",
        "Connection: close",
        f"Host: pictures.test:{site.port}",
        "User-Agent: clipserve",
    ]


async def test_no_environment_proxy_is_asked(site: Web, trap: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{FORBIDDEN}:{trap.port}")
    assert await fetcher(site).fetch(f"http://pictures.test:{site.port}/cat.png") == PICTURE
    assert trap.connections == 0


async def test_redirects_are_followed_up_to_three(site: Web) -> None:
    site.pages["/3"] = redirect("/2", "301 Moved Permanently")
    site.pages["/2"] = redirect("1", "307 Temporary Redirect")
    site.pages["/1"] = redirect(f"//PICTURES.test:{site.port}/cat.png", "308 Permanent Redirect")
    assert await fetcher(site).fetch(f"http://pictures.test:{site.port}/3") == PICTURE
    site.pages["/4"] = redirect("/3")
    with pytest.raises(UrlFailedError, match="more than 3 times"):
        await fetcher(site).fetch(f"http://pictures.test:{site.port}/4")


async def test_cookies_are_not_carried_along(site: Web) -> None:
    site.pages["/first"] = page(b"", "302 Found", Location="/cat.png", Set_Cookie="session=1")
    await fetcher(site).fetch(f"http://pictures.test:{site.port}/first")
    assert "cookie" not in site.requests[1].lower()


async def test_a_second_address_is_tried_when_the_first_is_not_there(
    site: Web, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = "2606:2800:220:1:248:1893:25c8:1946"
    connect = httpcore.AnyIOBackend.connect_tcp

    async def no_ipv6(self: httpcore.AnyIOBackend, host: str, *args: Any, **options: Any) -> Any:
        if host == dead:
            raise httpcore.ConnectError("no route")
        return await connect(self, host, *args, **options)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", no_ipv6)
    both = fetcher(site, resolve=names(pictures_test=[dead, PUBLIC]))
    assert await both.fetch(f"http://pictures.test:{site.port}/cat.png") == PICTURE
    assert connected == [PUBLIC]


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "works"),
    [("pictures.test", True, True), ("other.test", True, False), ("pictures.test", False, False)],
)
async def test_certificates_are_held_to_the_name_in_the_address(
    authority: trustme.CA, name: str, *, trusted: bool, works: bool
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    seen: list[str | None] = []
    server.sni_callback = lambda _socket, sni, _context: seen.append(sni)
    client = trusting(authority) if trusted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with web(PUBLIC, tls=server) as site:
        site.pages["/cat.png"] = page(PICTURE)
        fetching = fetcher(site, tls=client).fetch(f"https://pictures.test:{site.port}/cat.png")
        if works:
            assert await fetching == PICTURE
        else:
            with pytest.raises(UrlFailedError, match="connection to its server failed"):
                await fetching
    assert seen == ["pictures.test"]


async def test_https_never_becomes_http(authority: trustme.CA, site: Web) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pictures.test").configure_cert(server)
    async with web(PUBLIC, tls=server) as secure:
        secure.pages["/"] = redirect(f"http://pictures.test:{site.port}/cat.png")
        one = fetcher(site, ports=(site.port, secure.port), tls=trusting(authority))
        with pytest.raises(UrlForbiddenError, match="from https to http"):
            await one.fetch(f"https://pictures.test:{secure.port}/")
    assert site.connections == 0


# What is never connected to: {port} is that of a service on 127.0.0.1

FORBIDDEN_URLS = [
    # loopback and its spellings
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.255.255.254:{port}/",
    "http://2130706433:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://127.0.0.0x1:{port}/",
    "http://127.000.000.001:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://localhost.localdomain:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    # IPv6 and IPv4 inside it
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[2606:4700::5efe:127.0.0.1]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%25eth0]:{port}/",
    "http://[fe80::1%eth0]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fc00::1]:{port}/",
    "http://[fd00:ec2::254]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://[v1.127.0.0.1]:{port}/",
    # private, link-local, shared, multicast, reserved
    "http://10.0.0.1:{port}/",
    "http://172.16.0.1:{port}/",
    "http://172.31.255.255:{port}/",
    "http://192.168.1.1:{port}/",
    "http://169.254.169.254:{port}/latest/meta-data/",
    "http://100.64.0.1:{port}/",
    "http://100.100.100.200:{port}/",
    "http://168.63.129.16:{port}/",
    "http://192.0.0.192:{port}/",
    "http://192.88.99.1:{port}/",
    "http://198.18.0.1:{port}/",
    "http://224.0.0.1:{port}/",
    "http://240.0.0.1:{port}/",
    "http://255.255.255.255:{port}/",
    # names that lead inside
    "http://inside.test:{port}/",
    "http://metadata.test:{port}/",
    "http://mapped.test:{port}/",
    "http://zone.test:{port}/",
    "http://mixed.test:{port}/",
    "http://mixed-other-order.test:{port}/",
    # two parsers, two hosts
    "http://pictures.test@127.0.0.1:{port}/",
    "http://user:password@pictures.test:{port}/cat.png",
    "http://127.0.0.1:{port}@pictures.test/",
    "http://pictures.test:{port}@127.0.0.1:{port}/",
    "http://pictures.test:{port}\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\.pictures.test/",
    "http://pictures.test\t.127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@pictures.test/",
    "http://127.0.0.1:{port}?@pictures.test/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: pictures.test",
    "http://[::1]pictures.test:{port}/",
    "http://[127.0.0.1]:{port}/",
    # other schemes and ports
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "ftp://127.0.0.1:{port}/",
    "data:image/png;base64,AAAA",
    "unix:///run/docker.sock",
    "javascript:alert(1)",
    "ws://127.0.0.1:{port}/",
    "http://pictures.test:22/",
    "http://pictures.test:0/",
    "http://pictures.test:99999/",
    "http://pictures.test:-1/",
    "http://pictures.test:port/",
    # no host, or none that is a name
    "",
    "http://",
    "http://:{port}/",
    "http://./",
    "http://..:{port}/",
    "http://a..b:{port}/",
    "http://-a.test:{port}/",
    "http://a b:{port}/",
    "http://a,b:{port}/",
    "http://unknown.test:{port}/",
    "http://" + "a" * 64 + ".test:{port}/",
    "http://" + "a." * 200 + "test:{port}/",
    "http://" + "a" * 50_000,
    "http://pictures.test/" + "a" * 3000,
]

INSIDE = {
    "localhost": FORBIDDEN,
    "localhost_localdomain": ["::1", FORBIDDEN],
    "inside_test": "10.1.2.3",
    "metadata_test": "169.254.169.254",
    "mapped_test": "::ffff:10.1.2.3",
    "zone_test": "fe80::1%1",
    "mixed_test": [PUBLIC, FORBIDDEN],
    "mixed-other-order_test": ["::1", PUBLIC],
    "pictures_test": PUBLIC,
}


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
async def test_nothing_forbidden_is_connected_to(
    site: Web, trap: Web, connected: list[str], url: str
) -> None:
    url = url.format(port=trap.port)
    one = fetcher(site, resolve=names(**INSIDE), ports=(80, 443, site.port, trap.port))
    with pytest.raises(UrlForbiddenError):
        await one.fetch(url)
    assert (trap.connections, site.connections, connected) == (0, 0, [])


@pytest.mark.parametrize("url", [url for url in FORBIDDEN_URLS if url])
async def test_nor_after_a_redirect(site: Web, trap: Web, url: str) -> None:
    url = url.format(port=trap.port)
    site.pages["/"] = pieces(f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {url}\r\n\r\n".encode())
    inside = INSIDE | {"start_test": PUBLIC}
    one = fetcher(site, resolve=names(**inside), ports=(80, 443, site.port, trap.port))
    with pytest.raises((UrlForbiddenError, UrlFailedError)):
        await one.fetch(f"http://start.test:{site.port}/")
    assert trap.connections == 0


async def test_the_system_resolver_knows_localhost_and_is_not_believed(trap: Web) -> None:
    one = PictureFetcher(ports=(trap.port,))
    with pytest.raises(UrlForbiddenError, match="no address on the public internet"):
        await one.fetch(f"http://localhost:{trap.port}/")
    one.close()
    assert trap.connections == 0


async def test_a_name_that_changes_its_address_gains_nothing(site: Web, trap: Web) -> None:
    answers = iter([[PUBLIC], [FORBIDDEN]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    one = fetcher(site, resolve=rebinding)
    assert await one.fetch(f"http://pictures.test:{site.port}/cat.png") == PICTURE
    with pytest.raises(UrlForbiddenError):
        await one.fetch(f"http://pictures.test:{site.port}/cat.png")
    assert trap.connections == 0


async def test_nor_does_one_that_changes_between_redirects(site: Web, trap: Web) -> None:
    answers = iter([[PUBLIC], [FORBIDDEN]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    site.pages["/"] = redirect("/cat.png")
    with pytest.raises(UrlForbiddenError):
        await fetcher(site, resolve=rebinding).fetch(f"http://pictures.test:{site.port}/")
    assert (site.connections, trap.connections) == (1, 0)


async def test_an_unknown_name_and_one_that_leads_inside_look_alike(site: Web) -> None:
    said = set()
    for host in ("unknown.test", "inside.test"):
        with pytest.raises(UrlForbiddenError) as refusal:
            await fetcher(site, resolve=names(**INSIDE)).fetch(f"http://{host}:{site.port}/")
        said.add(str(refusal.value))
    assert len(said) == 1
    assert not any(character.isdigit() for character in said.pop())


async def test_only_listed_hosts_are_asked_redirects_included(site: Web, connected: list[str]) -> None:
    everywhere = names(pictures_test=PUBLIC, cdn_pictures_test=PUBLIC, evilpictures_test=PUBLIC)
    one = fetcher(site, resolve=everywhere, hosts=("*.pictures.test",))
    site.pages["/away"] = redirect(f"http://evilpictures.test:{site.port}/cat.png")
    assert await one.fetch(f"http://CDN.pictures.test.:{site.port}/cat.png") == PICTURE
    for url in ("evilpictures.test:{}/cat.png", "pictures.test:{}/cat.png", "cdn.pictures.test:{}/away"):
        with pytest.raises(UrlForbiddenError, match="not among those"):
            await one.fetch("http://" + url.format(site.port))
    assert len(connected) == 2


# Bad servers


def gzip_bomb() -> bytes:
    return gzip.compress(bytes(5_000_000))


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (page(b"x" * 1001), TooLargeError, "more than the 1000 bytes"),
        (page(b"", length=10**12), TooLargeError, "more than the 1000 bytes"),
        (endless(), TooLargeError, "more than the 1000 bytes"),
        (endless(pause=0.05, size=1), UrlTimeoutError, "may take 0.6 s"),
        (silent(), UrlTimeoutError, "took too long"),
        (pieces(*[b"HTTP/1.1 200 OK\r\n"], *[b"X-A: b\r\n"] * 100, pause=0.05), UrlTimeoutError, "too long"),
        (pieces(b"HTTP/1.1 100 Continue\r\n\r\n" * 20, b"", pause=1), UrlTimeoutError, "too long"),
        (page(b"x", length=2), UrlFailedError, "connection to its server failed"),
        (page(gzip_bomb(), Content_Encoding="gzip"), UrlFailedError, "compressed"),
        (page(b"x", Content_Encoding="br, identity"), UrlFailedError, "compressed"),
        (page(b"x", "404 Not Found"), UrlFailedError, "status 404"),
        (page(b"x", "500 Oops"), UrlFailedError, "status 500"),
        (page(b"", "204 No Content"), UrlFailedError, "status 204"),
        (page(b"x", "206 Partial Content"), UrlFailedError, "status 206"),
        (page(b"", "304 Not Modified"), UrlFailedError, "status 304"),
        (page(b"", "302 Found"), UrlFailedError, "more than 3 times"),
        (redirect("/loop"), UrlFailedError, "more than 3 times"),
        (pieces(b"SSH-2.0-OpenSSH_9.2\r\n"), UrlFailedError, "connection"),
        (pieces(b""), UrlFailedError, "connection"),
        (pieces(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000 + b"\r\n"), UrlFailedError, "connection"),
        (page(b"zz\r\n", Transfer_Encoding="chunked"), UrlFailedError, "connection"),
        (page(b"xx", Content_Length="1"), UrlFailedError, "connection"),
    ],
)
async def test_a_bad_server_costs_little_and_is_told_apart(
    site: Web, answer: Any, error: type[Exception], says: str
) -> None:
    site.pages["/loop"] = answer
    began = time.monotonic()
    with pytest.raises(error, match=says):
        await fetcher(site).fetch(f"http://pictures.test:{site.port}/loop")
    assert time.monotonic() - began < 2


async def test_a_port_that_nothing_listens_on_is_a_failure(site: Web) -> None:
    async with web(PUBLIC) as gone:
        port = gone.port
    with pytest.raises(UrlFailedError, match="connection to its server failed"):
        await fetcher(site, ports=(port,)).fetch(f"http://pictures.test:{port}/")


async def test_a_resolver_that_never_answers_is_given_up(site: Web) -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        raise AssertionError

    limits = FetchLimits(connect_seconds=0.05)
    with pytest.raises(UrlTimeoutError):
        await fetcher(site, resolve=silent, limits=limits).fetch(f"http://pictures.test:{site.port}/")


async def test_the_pictures_of_a_request_share_a_budget(site: Web) -> None:
    budget = ByteBudget(2 * len(PICTURE))
    url = f"http://pictures.test:{site.port}/cat.png"
    assert await fetcher(site).fetch(url, budget) == PICTURE
    assert await fetcher(site).fetch(url, budget) == PICTURE
    with pytest.raises(TooLargeError, match=f"{2 * len(PICTURE)} bytes together"):
        await fetcher(site).fetch(url, budget)


async def test_no_more_are_fetched_at_once_than_allowed(site: Web) -> None:
    running, most = 0, 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"

    site.pages["/"] = slowly
    one = fetcher(site, concurrency=2, limits=FetchLimits())
    fetched = await asyncio.gather(*(one.fetch(f"http://pictures.test:{site.port}/") for _ in range(8)))
    assert fetched == [b"x"] * 8
    assert most == 2


async def test_cancelling_a_fetch_closes_its_connection_and_frees_its_place(site: Web) -> None:
    site.pages["/"] = silent()
    one = fetcher(site, concurrency=1, limits=FetchLimits())
    fetching = asyncio.create_task(one.fetch(f"http://pictures.test:{site.port}/"))
    async with asyncio.timeout(5):
        while not site.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        assert await one.fetch(f"http://pictures.test:{site.port}/cat.png") == PICTURE


# Addresses and addresses' spellings


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("zone", ["2606:4700::1111%1", "::ffff:1.1.1.1%eth0"])
def test_an_address_with_a_zone_is_not(zone: str) -> None:
    assert not is_public(ip_address(zone))


def test_an_address_is_taken_apart() -> None:
    url = Url.parse("HTTPS://Pictures.Test.:8443/A?b=c#d")
    assert (url.scheme, url.host, url.port, url.target) == ("https", "pictures.test", 8443, "/A?b=c")
    assert str(url) == "https://pictures.test:8443/A?b=c"
    assert Url.parse("http://[2606:4700::1111]").authority == "[2606:4700::1111]"
    assert Url.parse("http://pictures.test?x").target == "/?x"


_PIECES = [
    "http",
    "https",
    "://",
    "//",
    "/",
    "\\",
    "@",
    ":",
    "?",
    "#",
    "[",
    "]",
    "%",
    "::1",
    "127.0.0.1",
    "0x7f",
]
_URLS = st.one_of(st.text(), st.lists(st.sampled_from([*_PIECES, "a.test", "80", ".", "é"])).map("".join))


@given(_URLS)
def test_any_text_is_taken_apart_for_good_or_refused(text: str) -> None:
    """What was taken apart stays the same when it is read again: there is one reading only."""
    try:
        url = Url.parse(text)
    except UrlForbiddenError:
        return
    assert Url.parse(str(url)) == url
    assert httpcore.URL(str(url)).host == url.host.encode()
    assert "@" not in url.authority


@given(_URLS)
def test_any_redirect_leads_somewhere_that_is_allowed_or_is_refused(location: str) -> None:
    try:
        url = Url.parse("https://pictures.test/a").redirected(location)
    except UrlForbiddenError:
        return
    assert url.scheme == "https"


def test_hosts_match_their_patterns() -> None:
    assert matches("a.b.test", ["*.b.test"])
    assert not matches("b.test", ["*.b.test"])
    assert not matches("ab.test", ["*.b.test", "a.b.test"])
    assert matches("anything", ["*"])


@pytest.mark.parametrize("text", ["a.test", "*.a.test", "a_b.c-d.e"])
def test_a_host_pattern_is_one(text: str) -> None:
    assert is_host_pattern(text)


@pytest.mark.parametrize(
    "text", ["a", "*", "*a.test", "a.*", "*.*.test", "A.test", "a..test", "http://a.test", ""]
)
def test_what_is_no_host_pattern(text: str) -> None:
    assert not is_host_pattern(text)

"""A model hub on loopback: as much of the Hugging Face hub's HTTP API as ``huggingface_hub`` asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

LARGE = 10_000  # bytes from which a file lies in the large file storage, whose SHA-256 the hub states


@dataclass
class Hub:
    """Repositories by name, each one commit; ``requests`` and ``authorizations``: what was asked, as whom.

    ``cuts`` closes the connection: after so many bytes of a file's body, once for each entry of its list.
    ``tampered`` replaces what a file's body delivers while the listing keeps its SHA-256.
    """

    repositories: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    endpoint: str = ""

    def commit(self, repo: str) -> str:
        """The 40 digits of the only commit there is."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, body in sorted(self.repositories[repo].items()):
            digest.update(path.encode() + body)
        return digest.hexdigest()

    def ranges(self, path: str) -> list[str]:
        """The ``Range`` headers of every download of a file, empty where there was none."""
        return [span for method, asked, span in self.requests if method == "GET" and asked.endswith(path)]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_at(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do, which ``huggingface_hub`` reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_HubHandler):
        pass

    Handler.hub = hub
    return Handler


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_args: object) -> None:
        """Keep the test's output quiet."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        parts = path.split("/")
        if parts[:2] == ["api", "models"] or "resolve" in parts:
            self.hub.authorizations.add(self.headers.get("Authorization"))
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    def _known(self, repo: str, revision: str) -> bool:
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repo not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif revision not in {"main", self.hub.commit(repo)}:
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _describe(self, repo: str, revision: str) -> None:
        if not self._known(repo, revision):
            return
        siblings = []
        for path, body in self.hub.repositories[repo].items():
            sibling = {"rfilename": path, "size": len(body), "blobId": _sha1(body)}
            if len(body) >= LARGE:
                sibling["lfs"] = {"sha256": _sha256(body), "size": len(body), "pointerSize": 130}
            siblings.append(sibling)
        described = {"id": repo, "sha": self.hub.commit(repo), "siblings": siblings}
        self._send(200, json.dumps(described | {"cardData": {"license": "mit"}}).encode(), {})

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if not self._known(repo, revision):
            return
        if path not in self.hub.repositories[repo]:
            self._refuse(404, "EntryNotFound")
            return
        body = self.hub.repositories[repo][path]
        etag = _sha256(body) if len(body) >= LARGE else _sha1(body)
        body = self.hub.tampered.get(path, body)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit(repo), "Accept-Ranges": "bytes"}
        span = self.headers.get("Range")
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cuts = self.hub.cuts.get(path, []) if self.command == "GET" else []
        self._send(206 if span else 200, body[start:], headers, cut=cuts.pop(0) if cuts else None)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _sha1(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()

"""Whole HTTP/1.1 requests as bytes, made before anything is measured."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence

_BOUNDARY = "----clipserve-benchmark"


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A whole HTTP/1.1 request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post_json(path: str, value: object) -> bytes:
    """A request whose body is JSON."""
    return post(path, json.dumps(value).encode(), "application/json")


def in_base64(content: bytes) -> str:
    """As JSON carries a file."""
    return b64encode(content).decode()


def raw(path: str, pictures: Sequence[bytes]) -> list[bytes]:
    """Requests whose body is a picture."""
    return [post(path, picture, "image/jpeg") for picture in pictures]


def forms(
    path: str, pictures: Sequence[Sequence[bytes]], fields: Sequence[tuple[str, str]] = ()
) -> list[bytes]:
    """Requests with one multipart form each: its pictures, then ``fields``."""
    rest = b"".join(_part(f'name="{name}"', value.encode()) for name, value in fields)
    end = f"--{_BOUNDARY}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={_BOUNDARY}"
    file = 'name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'
    files = (b"".join(_part(file, picture) for picture in group) for group in pictures)
    return [post(path, part + rest + end, content_type) for part in files]


def classify_json(pictures: Sequence[bytes], classes: Sequence[str]) -> list[bytes]:
    """``/classify`` requests in JSON, with the picture in base64."""
    return [
        post_json("/classify", {"image": {"base64": in_base64(picture)}, "labels": classes, "top_k": 5})
        for picture in pictures
    ]


def embed_texts(texts: Sequence[str]) -> list[bytes]:
    """``/embed`` requests of one text each."""
    return [post_json("/embed", {"inputs": [{"text": text}]}) for text in texts]


def _part(disposition: str, content: bytes) -> bytes:
    return (
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
    )

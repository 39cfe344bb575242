"""Requests of every kind, good and bad, each with what must be answered."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson

from benchmarks.requests import forms
from models.registry import LoadedModel
from tests.apps import base64
from tests.pictures import encode, png, png_header, scene, truncated_jpeg
from tests.soak.wire import Answer, request

CLASSIFIER = "kept"
TOLERANCE = 5e-5  # in a cosine, between one batch and another
_SIZES = [(1, 1), (7, 9), (64, 64), (41, 640), (300, 200), (100, 70), (128, 96), (200, 90)] * 4 + [(800, 600)]
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_PICTURES = [
    encode(scene(seed, width, height), _FORMATS[seed % len(_FORMATS)])
    for seed, (width, height) in enumerate(_SIZES)
]
_LABELS = [f"{noun} number {number}" for number in range(150) for noun in ("cat", "red circle")]
_TEXTS = [f"{'very ' * (number % 9)}long text {number}" for number in range(60)]
_BAD = [
    (truncated_jpeg(), 422, "invalid_image"),
    (b"", 415, "unsupported_image_format"),
    (b"just a text", 415, "unsupported_image_format"),
    (png_header(30_000, 30_000), 413, "image_too_large"),
    (png()[:-30], 422, "invalid_image"),
]

Check = Callable[[Answer], None]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request, and what holds its answer to what it must be."""

    kind: str
    request: bytes
    check: Check


class Exchanges:
    """Makes exchanges; what is right is computed by ``model``, alone and one by one."""

    def __init__(self, model: LoadedModel, random: Random) -> None:
        self._random = random
        self._pictures = np.concatenate([model.encode_images([one]) for one in _PICTURES])
        self._texts = np.concatenate([model.encode_texts([one]) for one in _TEXTS])
        prompts = [f"a photo of a {label}." for label in _LABELS]
        self._classes = np.concatenate([model.encode_texts([one]) for one in prompts])
        self._kept = self._some(_LABELS, 40)

    def make(self, count: int) -> list[Exchange]:
        """Exchanges of all kinds, the cheap ones more often."""
        kinds: dict[Callable[[], tuple[bytes, Check]], int] = {
            self._classify_raw: 25,
            self._classify_form: 12,
            self._classify_json: 10,
            self._classify_many: 6,
            self._classify_named: 8,
            self._embed_form: 6,
            self._embed_numbers: 8,
            self._embed_base64: 8,
            self._embed_npy: 4,
            self._refused_picture: 8,
            self._refused_request: 8,
            self._read: 5,
            self._put: 1,
        }
        chosen = [*kinds, *self._random.choices([*kinds], [*kinds.values()], k=count - len(kinds))]
        made = ((one.__name__.strip("_"), *one()) for one in chosen)
        return [Exchange(kind=kind, request=asked, check=check) for kind, asked, check in made]

    def put(self) -> Exchange:
        """What must have been asked before anything else."""
        asked, check = self._put()
        return Exchange(kind="put", request=asked, check=check)

    # Scoring

    def _classify_raw(self) -> tuple[bytes, Check]:
        picture, labels = self._picture(), self._some(_LABELS, self._random.randint(1, 6))
        query = urlencode([("labels", _LABELS[label]) for label in labels])
        asked = request("POST", f"/classify?{query}", _PICTURES[picture], "image/png")
        return asked, self._scores([picture], labels)

    def _classify_form(self) -> tuple[bytes, Check]:
        picture, labels = self._picture(), self._some(_LABELS, self._random.randint(1, 6))
        fields = [("labels", _LABELS[label]) for label in labels]
        [asked] = forms("/classify", [[_PICTURES[picture]]], fields)
        return asked, self._scores([picture], labels)

    def _classify_json(self) -> tuple[bytes, Check]:
        picture, labels = self._picture(), self._some(_LABELS, self._random.randint(1, 6))
        body = {"image": _image(picture), "labels": [_LABELS[label] for label in labels]}
        return _post("/classify", body), self._scores([picture], labels)

    def _classify_many(self) -> tuple[bytes, Check]:
        """Pictures, bad ones and embeddings in any order."""
        items = self._random.choices(
            [*range(len(_PICTURES)), *range(-len(_BAD), 0)], k=self._random.randint(2, 5)
        )
        labels = self._some(_LABELS, self._random.randint(2, 6))
        images = [
            {"base64": base64(_BAD[item][0])}
            if item < 0
            else _image(item)
            if self._random.random() < 0.7
            else {"embedding": self._pictures[item].tolist()}
            for item in items
        ]
        body = {"images": images, "labels": [_LABELS[label] for label in labels]}
        return _post("/classify", body), self._scores(items, labels)

    def _classify_named(self) -> tuple[bytes, Check]:
        picture = self._picture()
        body = {"image": _image(picture), "classifier": CLASSIFIER}
        return _post("/classify", body), self._scores([picture], self._kept)

    def _scores(self, items: Sequence[int], labels: Sequence[int]) -> Check:
        """``items``: indices of pictures, or of bad ones counted from the end."""
        names = [_LABELS[label] for label in labels]
        expected = self._pictures[[max(item, 0) for item in items]] @ self._classes[list(labels)].T

        def check(answer: Answer) -> None:
            results = _json(answer)["results"]
            assert [result["index"] for result in results] == [*range(len(items))]
            for item, row, result in zip(items, expected, results, strict=True):
                if item < 0:
                    assert result["error"]["code"] == _BAD[item][2]
                    continue
                given = {one["label"]: one["similarity"] for one in result["predictions"]}
                assert len(given) == len(names)
                assert np.abs([given[name] for name in names] - row).max() < TOLERANCE
                scores = [one["score"] for one in result["predictions"]]
                assert scores == sorted(scores, reverse=True)

        return check

    # Embedding

    def _embed_form(self) -> tuple[bytes, Check]:
        picture, text = self._picture(), self._random.randrange(len(_TEXTS))
        [asked] = forms("/embed", [[_PICTURES[picture]]], [("text", _TEXTS[text])])
        return asked, _vectors(np.stack([self._pictures[picture], self._texts[text]]))

    def _embed_numbers(self) -> tuple[bytes, Check]:
        inputs, expected = self._mixed()
        return _post("/embed", {"inputs": inputs}), _vectors(expected)

    def _embed_base64(self) -> tuple[bytes, Check]:
        inputs, expected = self._mixed()
        return _post("/embed", {"inputs": inputs, "encoding": "base64"}), _vectors(expected)

    def _embed_npy(self) -> tuple[bytes, Check]:
        inputs, expected = self._mixed()

        def check(answer: Answer) -> None:
            assert answer.status == 200, answer.body
            assert np.abs(np.load(io.BytesIO(answer.body)) - expected).max() < TOLERANCE

        return _post("/embed", {"inputs": inputs}, Accept="application/x-npy"), check

    def _mixed(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        inputs: list[dict[str, Any]] = []
        expected = []
        for _ in range(self._random.choice((1, 1, 1, 4))):
            if self._random.random() < 0.6:
                number = self._random.randrange(len(_TEXTS))
                inputs.append({"text": _TEXTS[number]})
                expected.append(self._texts[number])
            else:
                number = self._picture()
                inputs.append({"image": _image(number)})
                expected.append(self._pictures[number])
        return inputs, np.array(expected)

    # The rest

    def _refused_picture(self) -> tuple[bytes, Check]:
        data, status, code = self._random.choice(_BAD)
        raw = request("POST", "/classify?labels=a", data, "image/png")
        body = _post("/embed", {"inputs": [{"image": {"base64": base64(data)}}]})
        return self._random.choice([raw, body]), _refusal(status, code)

    def _refused_request(self) -> tuple[bytes, Check]:
        image = _image(0)
        asked, status, code = self._random.choice(
            [
                (request("POST", "/classify", b"{"), 400, "malformed_body"),
                (request("POST", "/embed", b"x", "multipart/form-data; boundary=b"), 400, "malformed_body"),
                (request("GET", "/nowhere"), 404, "not_found"),
                (request("DELETE", "/classify"), 405, "method_not_allowed"),
                (request("POST", "/embed", b"a", "text/plain"), 415, "unsupported_body"),
                (_post("/classify", {"image": image, "labels": []}), 422, "invalid_labels"),
                (_post("/classify", {"image": image, "labels": ["a"], "model": "no"}), 404, "unknown_model"),
                (_post("/embed", {"inputs": [{"text": "a"}] * 200}), 413, "too_large"),
                (_post("/embed", {"inputs": [{"text": "a" * 5000}]}), 413, "too_large"),
            ]
        )
        return asked, _refusal(status, code)

    def _read(self) -> tuple[bytes, Check]:
        path = self._random.choice(
            ["/health/live", "/health/ready", "/metrics", "/models", "/template-sets", "/classifiers"]
        )

        def check(answer: Answer) -> None:
            assert answer.status == 200
            assert answer.body

        return request("GET", path), check

    def _put(self) -> tuple[bytes, Check]:
        body = json.dumps({"labels": [_LABELS[label] for label in self._kept]}).encode()

        def check(answer: Answer) -> None:
            described = orjson.loads(answer.body)
            # Where two ask at once, the first is told of the second's build.
            assert (answer.status, described["state"]) in {(200, "ready"), (202, "building")}
            assert described["labels"] == len(self._kept)

        return request("PUT", f"/classifiers/{CLASSIFIER}", body), check

    def _picture(self) -> int:
        return self._random.randrange(len(_PICTURES))

    def _some(self, of: Sequence[object], count: int) -> list[int]:
        return self._random.sample(range(len(of)), count)


def _image(picture: int) -> dict[str, str]:
    return {"base64": base64(_PICTURES[picture])}


def _post(path: str, body: object, **headers: str) -> bytes:
    return request("POST", path, json.dumps(body).encode(), **headers)


def _json(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return orjson.loads(answer.body)


def _vectors(expected: np.ndarray) -> Check:
    def check(answer: Answer) -> None:
        given = [entry["embedding"] for entry in _json(answer)["embeddings"]]
        if isinstance(given[0], str):
            given = [np.frombuffer(b64decode(one), "<f4") for one in given]
        assert np.abs(np.array(given) - expected).max() < TOLERANCE

    return check


def _refusal(status: int, code: str) -> Check:
    def check(answer: Answer) -> None:
        assert (answer.status, orjson.loads(answer.body)["code"]) == (status, code)

    return check

"""A model behind a server, through its public API: pictures and texts go to ``POST /embed`` in batches."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import numpy as np

from models.manifest import ScoringSpec
from prompts.templates import TemplateSet
from service.class_builder import split
from service.evaluation.encoder import Features, Outcome
from service.evaluation.errors import ServerError

_AT_ONCE = 4
_PICTURES_A_REQUEST, _TEXTS_A_REQUEST = 16, 64
_BUSY = frozenset({429, 503, 504})
_TOO_LARGE = 413
_PATIENCE = 120.0
_LONGEST_PAUSE = 15.0
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)

T = TypeVar("T")
Send = Callable[[Sequence[T]], httpx.Response]


@contextmanager
def connected(url: str, *, model: str | None = None, api_key: str | None = None) -> Iterator[ServerEncoder]:
    """The model ``model``, or the default one, of the server at ``url``.

    Raises:
        ServerError: the server cannot be reached, wants another key, or does not know the model.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT)
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        raise ServerError(f"the address or the key of the server cannot be sent: {error}") from error
    with client:
        yield ServerEncoder(client, model=model)


class ServerEncoder:
    """Several requests are under way at once, so that the server has full batches.

    A busy server is asked again when it says so, for up to two minutes; what is too large for one request is
    sent in two halves.
    """

    def __init__(self, client: httpx.Client, *, model: str | None = None) -> None:
        self._client = client
        try:
            self.name = model or str(self._get("/models")["default"])
            facts = self._get(f"/models/{quote(self.name, safe='')}")
            self.digest = str(facts["digest"])
            self.scoring = ScoringSpec.model_validate(facts["scoring"])
            known = self._get("/template-sets")
            self.default_template_set = str(known["default"])
            self.template_sets = [
                TemplateSet(name=one["name"], templates=tuple(one["templates"]))
                for one in known["template_sets"]
            ]
        except (ValueError, KeyError, TypeError) as error:  # pydantic's errors are ValueErrors
            raise ServerError(f"what answers at {client.base_url} is no clipserve server") from error

    def pictures(self, paths: Sequence[Path]) -> Iterator[Outcome]:
        """As ``Encoder.pictures``."""
        return self._side_by_side(self._embed_files, split(paths, _PICTURES_A_REQUEST))

    def texts(self, texts: Sequence[str]) -> Iterator[Features]:
        """As ``Encoder.texts``.

        Raises:
            ServerError: a text cannot be embedded.
        """
        embed = partial(self._embed, self._send_texts)
        for text, outcome in zip(
            texts, self._side_by_side(embed, split(texts, _TEXTS_A_REQUEST)), strict=True
        ):
            if isinstance(outcome, str):
                raise ServerError(f"the server cannot embed {text[:80]!r}: {outcome}")
            yield outcome

    def _side_by_side(
        self, embed: Callable[[Sequence[T]], list[Outcome]], batches: Sequence[Sequence[T]]
    ) -> Iterator[Outcome]:
        threads = ThreadPoolExecutor(_AT_ONCE)
        try:
            for outcomes in threads.map(embed, batches):
                yield from outcomes
        finally:  # after an error, or Ctrl-C, what has not been sent need not be
            threads.shutdown(cancel_futures=True)

    def _embed_files(self, paths: Sequence[Path]) -> list[Outcome]:
        read = [_read(path) for path in paths]
        files = [one for one in read if isinstance(one, bytes)]
        outcomes = iter(self._embed(self._send_pictures, files) if files else ())
        return [one if isinstance(one, str) else next(outcomes) for one in read]

    def _embed(self, send: Send[T], items: Sequence[T]) -> list[Outcome]:
        answer = self._patiently(partial(send, items))
        if answer.status_code == 200:
            return [_outcome(entry) for entry in answer.json()["embeddings"]]
        if answer.status_code == _TOO_LARGE and len(items) > 1:
            middle = len(items) // 2
            return self._embed(send, items[:middle]) + self._embed(send, items[middle:])
        if answer.status_code in {_TOO_LARGE, 415, 422} and len(items) == 1:
            return [_detail(answer)]
        raise _refusal(answer)

    def _send_pictures(self, pictures: Sequence[bytes]) -> httpx.Response:
        files = [("image", ("picture", picture)) for picture in pictures]
        return self._client.post("/embed", files=files, data={"model": self.name, "encoding": "base64"})

    def _send_texts(self, texts: Sequence[str]) -> httpx.Response:
        inputs = [{"text": text} for text in texts]
        return self._client.post("/embed", json={"inputs": inputs, "model": self.name, "encoding": "base64"})

    def _get(self, path: str) -> Any:
        answer = self._patiently(partial(self._client.get, path))
        if answer.status_code != 200:
            raise _refusal(answer)
        return answer.json()

    def _patiently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """An answer other than that the server is busy, unless it stays so for too long."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                answer = send()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise ServerError(f"no answer from {self._client.base_url}: {reason}") from error
            if answer.status_code not in _BUSY or time.monotonic() > end:
                return answer
            time.sleep(_pause(answer))


def _read(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _outcome(entry: dict[str, Any]) -> Outcome:
    if "error" in entry:
        return str(entry["error"]["message"])
    return np.frombuffer(b64decode(entry["embedding"]), "<f4").astype(np.float32, copy=False)


def _pause(answer: httpx.Response) -> float:
    wanted = answer.headers.get("retry-after", "")
    return min(float(wanted), _LONGEST_PAUSE) if wanted.isdecimal() else 1.0


def _detail(answer: httpx.Response) -> str:
    """What a ``problem+json`` says, or the status where something else than clipserve answered."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase or "without a reason"


def _refusal(answer: httpx.Response) -> ServerError:
    return ServerError(f"{answer.url} answered {answer.status_code}: {_detail(answer)}")

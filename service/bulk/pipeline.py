"""Pictures → features, with every core and every slot of the encoder at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from threading import BoundedSemaphore, Event

import numpy as np
from numpy.typing import NDArray

from models.cores import available_cores
from models.errors import ImageError
from models.registry import LoadedModel
from service.bulk.errors import UnreadableError
from service.bulk.picture import Content, Picture, read

_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What became of a picture: its features float32 (D,), or in words why it has none."""

    key: str
    features: NDArray[np.float32] | None
    error: str = ""


Chunk = list[tuple[str, Content | UnreadableError]]


class Pipeline:
    """Decodes and encodes in chunks of a batch, each from first to last in one thread.

    There are as many threads as cores that decode and slots that encode, together: whatever takes longer
    always has work waiting. Two chunks a thread are under way at most, so memory does not grow with the
    number of pictures; ``max_bytes`` bounds one of them.
    """

    def __init__(self, model: LoadedModel, *, max_batch: int, max_bytes: int, threads: int = 0) -> None:
        self._model = model
        self._batch = min(max_batch, model.image.best_batch or max_batch)
        self._max_bytes = max_bytes
        self._threads = (threads or available_cores()) + model.image.slots
        self._slots = BoundedSemaphore(model.image.slots)

    def encode(self, pictures: Iterable[Picture], *, stop: Event | None = None) -> Iterator[Encoded]:
        """One outcome a picture, in their order.

        Once ``stop`` is set no more are taken, and those that no thread has begun yet are left out.
        """
        stop = stop or Event()
        wanted = takewhile(lambda _: not stop.is_set(), pictures)
        begun: deque[Future[list[Encoded]]] = deque()
        pool = ThreadPoolExecutor(self._threads)
        try:
            for chunk in _chunks(wanted, self._batch):
                begun.append(pool.submit(self._encode, chunk))
                if len(begun) >= 2 * self._threads:
                    yield from begun.popleft().result()
            if stop.is_set():
                begun = deque(one for one in begun if not one.cancel())
            while begun:
                yield from begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _encode(self, chunk: Chunk) -> list[Encoded]:
        decoded = [self._decode(content) for _, content in chunk]
        good = [pixels for pixels in decoded if not isinstance(pixels, str)]
        with self._slots:
            features = iter(self._model.encode_pixels(good) if good else ())
        return [
            Encoded(key=key, features=None, error=pixels)
            if isinstance(pixels, str)
            else Encoded(key=key, features=next(features))
            for (key, _), pixels in zip(chunk, decoded, strict=True)
        ]

    def _decode(self, content: Content | UnreadableError) -> NDArray[np.uint8] | str:
        try:
            if isinstance(content, UnreadableError):
                return str(content)
            return self._model.preprocess(read(content, max_bytes=self._max_bytes))
        except (ImageError, UnreadableError) as error:
            return str(error)


def _chunks(pictures: Iterable[Picture], size: int) -> Iterator[Chunk]:
    """``size`` pictures at a time; fewer where these have many bytes, which wait in memory."""
    chunk: Chunk = []
    held = 0
    for picture in pictures:
        try:
            content: Content | UnreadableError = picture.load()
        except UnreadableError as error:
            content = error
        chunk.append((picture.key, content))
        held += len(content) if isinstance(content, bytes) else 0
        if len(chunk) == size or held >= _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk

"""One bulk job: from sources to the output, leaving out what is done already."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.bulk.failures import Failures
from service.bulk.inputs import Source
from service.bulk.keyset import KeySet
from service.bulk.picture import Picture
from service.bulk.pipeline import Pipeline

if TYPE_CHECKING:
    from service.bulk.output import Output


@dataclass
class Tally:
    """How far a job is. ``known`` pictures were done by an earlier run, or named twice."""

    embedded: int = 0
    bad: int = 0
    known: int = 0
    began: float | None = None

    @property
    def seen(self) -> int:
        """Inputs that this run has dealt with."""
        return self.embedded + self.bad + self.known

    @property
    def rate(self) -> float:
        """Inputs a second, since the first that an earlier run had not done; 0 before."""
        return 0.0 if self.began is None else (self.embedded + self.bad) / (perf_counter() - self.began)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be embedded, by what. ``encode_texts`` takes ``batch`` texts at a time."""

    sources: Sequence[Source]
    texts: Sequence[str]
    pipeline: Pipeline
    encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]
    batch: int

    def run(self, output: Output, failures: Failures, *, stop: Event) -> Generator[Tally, None, None]:
        """Do it, and tell after each picture, always with the same tally.

        Nothing is embedded whose key is in ``output`` or ``failures``. After ``stop`` is set, what is under
        way is still put into ``output``. Everything that was added is in a part when this ends.
        """
        tally, keys = Tally(), KeySet()
        try:
            for kind, key in output.known():
                keys.add(kind, key)
            for key in failures.known():
                keys.add("image", key)
            for one in self.pipeline.encode(_new(self.sources, keys, tally), stop=stop):
                if one.features is None:
                    failures.add(one.key, one.error)
                    tally.bad += 1
                else:
                    output.add(one.key, "image", one.features)
                    tally.embedded += 1
                yield tally
            if not stop.is_set():
                self._embed_texts(output, keys, tally)
            yield tally
        finally:
            keys.close()
            output.commit()

    def encode_in_batches(self, texts: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Each text with its features (D,)."""
        for start in range(0, len(texts), self.batch):
            some = texts[start : start + self.batch]
            yield from zip(some, self.encode_texts(some), strict=True)

    def _embed_texts(self, output: Output, keys: KeySet, tally: Tally) -> None:
        new = [text for text in self.texts if keys.add("text", text)]
        tally.known += len(self.texts) - len(new)
        for text, features in self.encode_in_batches(new):
            output.add(text, "text", features)
            tally.embedded += 1


def _new(sources: Iterable[Source], keys: KeySet, tally: Tally) -> Iterator[Picture]:
    for source in sources:
        for picture in source.pictures():
            if keys.add("image", picture.key):
                tally.began = tally.began or perf_counter()
                yield picture
            else:
                tally.known += 1

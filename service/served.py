"""A model in service: its two encoders, each behind a queue, and who is using it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.registry import LoadedModel, Model, describe
from models.runtimes import Session
from service.batcher import Answer, Batcher, Lane
from service.metrics import BatchMetrics, Metrics

Features = NDArray[np.float32]
_LANES: tuple[Lane, ...] = ("interactive", "bulk")


class NonFiniteFeaturesError(RuntimeError):
    """An encoder gave NaN or infinity for an item."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """See ``batcher.Batcher``."""

    max_batch: int = 32
    capacity: int = 1024
    stall_seconds: float = 60.0


class EncoderQueue(Protocol):
    """What items of an encoder are handed to: a ``Batcher`` here, or the way to one in another process."""

    async def submit(
        self, items: Sequence[Any], *, lane: Lane = "interactive", deadline: float | None = None
    ) -> Answer[Features]:
        """See ``Batcher.submit``."""
        ...

    def waiting(self, lane: Lane) -> int:
        """Items of a lane that wait."""
        ...

    def expected_wait(self) -> float:
        """Seconds until what waits now will have run."""
        ...

    @property
    def failure(self) -> str | None:
        """That nothing will be encoded any more, in words that probes may show, or None while all is well."""
        ...

    async def close(self) -> None:
        """Take nothing more, answer what waits with an error, and wait for what runs."""
        ...


class ServedModel(ABC):
    """A model and the queues of its two encoders. Lives on one event loop.

    Whoever works with it holds it through ``use``, so that it is freed only when nobody does. ``since`` is
    when it came into service, in seconds since 1970.
    """

    def __init__(self, model: Model, *, images: EncoderQueue, texts: EncoderQueue) -> None:
        self.model = model
        self.name = model.name
        self.digest = model.manifest.digest
        self.since = time.time()
        self.images = images
        self.texts = texts
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def queues(self) -> dict[str, EncoderQueue]:
        """Both, by the name of their encoder."""
        return {"image": self.images, "text": self.texts}

    @abstractmethod
    def running(self) -> dict[str, Any]:
        """See ``LoadedModel.running``."""

    def describe(self) -> dict[str, Any]:
        """What ``GET /models`` tells about a model in service."""
        return describe(self.model.manifest) | {"loaded": True} | self.running()

    @contextmanager
    def use(self) -> Iterator[ServedModel]:
        """Keep the model from being freed while the block runs."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def retire(self) -> None:
        """Wait until nobody uses the model any more, then free it."""
        await self._unused.wait()
        await self.close()

    async def close(self) -> None:
        """Answer what waits with an error, let what runs end."""
        for queue in self.queues.values():
            await queue.close()

    @abstractmethod
    def show(self) -> None:
        """Have metrics tell of the model."""

    @abstractmethod
    def hide(self) -> None:
        """Take the model's own metrics away."""


class LocalModel(ServedModel):
    """A model whose graphs this process runs, each behind a batcher.

    ``in_flight``: how many items each encoder runs at once, at most.
    """

    def __init__(self, model: LoadedModel, options: BatchOptions, metrics: Metrics) -> None:
        self._loaded = model
        self._metrics = metrics
        images = self._batcher("image", model.image, model.encode_pixels, options)
        texts = self._batcher("text", model.text, model.encode_tokens, options)
        super().__init__(model, images=images, texts=texts)
        self.in_flight = {
            "image": model.image.slots * images.max_batch,
            "text": model.text.slots * texts.max_batch,
        }

    def running(self) -> dict[str, Any]:
        """See ``LoadedModel.running``."""
        return self._loaded.running()

    async def close(self) -> None:
        """Answer what waits with an error, let what runs end, free the model."""
        await super().close()
        self._loaded.close()

    def show(self) -> None:
        """Have metrics tell of the model."""
        self._metrics.model_info.labels(*_info(self._loaded)).set(1)
        self._metrics.model_load_seconds.labels(self.name).set(self._loaded.load_seconds)
        for encoder, queue in self.queues.items():
            for lane in _LANES:
                self._metrics.watch(
                    *(self._metrics.queue_items, self.name, encoder, lane), value=partial(queue.waiting, lane)
                )

    def hide(self) -> None:
        """Take the model's own metrics away."""
        self._metrics.model_info.remove(*_info(self._loaded))
        self._metrics.model_load_seconds.remove(self.name)
        for encoder in self.queues:
            for lane in _LANES:
                self._metrics.forget(self._metrics.queue_items, self.name, encoder, lane)

    def _batcher(
        self,
        encoder: str,
        session: Session,
        encode: Callable[[Sequence[NDArray[Any]]], Features],
        options: BatchOptions,
    ) -> Batcher[Any, Features]:
        return Batcher(
            lambda items: _check_finite(encode(items)),
            name=f"{encoder} encoder of {self._loaded.name}",
            slots=session.slots,
            max_batch=min(options.max_batch, session.best_batch or options.max_batch),
            company=session.company,
            bulk_batch=options.max_batch,
            capacity=options.capacity,
            stall_seconds=options.stall_seconds,
            observer=BatchMetrics(self._metrics, model=self._loaded.name, encoder=encoder),
        )


def _check_finite(features: Features) -> list[Features | Exception]:
    """Rows of a batch (N, D); a row with NaN or infinity becomes an error of its own item."""
    finite = np.atleast_1d(np.isfinite(features).all(axis=1))
    return [
        row if good else NonFiniteFeaturesError("the encoder gave values that are not finite")
        for row, good in zip(features, finite, strict=True)
    ]


def _info(model: LoadedModel) -> tuple[str, str, str, str]:
    return model.name, model.image.runtime, model.image.provider, model.image.precision

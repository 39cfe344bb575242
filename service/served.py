"""A model in service: its two encoders, each behind a batcher, and who is using it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.registry import LoadedModel
from models.runtimes import Session
from service.batcher import Batcher, Lane
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


class ServedModel:
    """A loaded model and the two batchers that feed it. Lives on one event loop.

    Whoever works with it holds it through ``use``, so that it is freed only when nobody does. ``since`` is
    when it came into service, in seconds since 1970.
    """

    def __init__(self, model: LoadedModel, options: BatchOptions, metrics: Metrics) -> None:
        self.model = model
        self.name = model.name
        self.digest = model.manifest.digest
        self.since = time.time()
        self._metrics = metrics
        self.images: Batcher[NDArray[np.uint8], Features] = self._batcher(
            "image", model.image, model.encode_pixels, options
        )
        self.texts: Batcher[NDArray[np.int64], Features] = self._batcher(
            "text", model.text, model.encode_tokens, options
        )
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._show()

    @property
    def batchers(self) -> dict[str, Batcher[Any, Features]]:
        """Both, by the name of their encoder."""
        return {"image": self.images, "text": self.texts}

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
        """Answer what waits with an error, let what runs end, free the model."""
        for batcher in self.batchers.values():
            await batcher.close()
        self.model.close()

    def hide(self) -> None:
        """Take the model's own metrics away."""
        self._metrics.model_info.remove(*_info(self.model))
        self._metrics.model_load_seconds.remove(self.name)
        for encoder in self.batchers:
            for lane in _LANES:
                self._metrics.forget(self._metrics.queue_items, self.name, encoder, lane)

    def _show(self) -> None:
        self._metrics.model_info.labels(*_info(self.model)).set(1)
        self._metrics.model_load_seconds.labels(self.name).set(self.model.load_seconds)
        for encoder, batcher in self.batchers.items():
            for lane in _LANES:
                self._metrics.watch(
                    *(self._metrics.queue_items, self.name, encoder, lane),
                    value=partial(batcher.waiting, lane),
                )

    def _batcher(
        self,
        encoder: str,
        session: Session,
        encode: Callable[[Sequence[NDArray[Any]]], Features],
        options: BatchOptions,
    ) -> Batcher[Any, Features]:
        return Batcher(
            lambda items: _check_finite(encode(items)),
            name=f"{encoder} encoder of {self.name}",
            slots=session.slots,
            max_batch=min(options.max_batch, session.best_batch or options.max_batch),
            capacity=options.capacity,
            stall_seconds=options.stall_seconds,
            observer=BatchMetrics(self._metrics, model=self.name, encoder=encoder),
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

"""What the routes call: pictures and texts in, features and classifiers out.

Lives on one event loop. Decoding runs in a pool of threads, each encoder behind a batcher of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.cores import available_cores
from models.errors import TextTooLongError
from models.manifest import Activation
from models.registry import LoadedModel, ModelRegistry
from models.tokenizer import TokenizedText
from prompts.cache import EmbeddingCache, class_key, matrix_key
from prompts.classifier import ZeroShotClassifier
from prompts.ensemble import PromptPlan
from prompts.labels import Label
from prompts.templates import TemplateSet
from service.batcher import Answer, Batcher, Lane
from service.metrics import BatchMetrics, Metrics
from service.timings import Timings

Features = NDArray[np.float32]
Progress = Callable[[int], None]
T = TypeVar("T")

# Tokenising a few short texts takes less time than handing them to a thread.
_TOKENIZE_INLINE = 8
LABELS_A_ROUND = 64


class NonFiniteFeaturesError(RuntimeError):
    """An encoder gave NaN or infinity for an item."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much runs at once. ``decode_threads`` 0: one a core."""

    max_batch: int = 32
    max_queue: int = 1024
    decode_threads: int = 0
    stall_seconds: float = 60.0
    background_prompts: int = 256
    class_cache_bytes: int = 64 * 2**20
    matrix_cache_bytes: int = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """A text's features (D,) and whether it was cut to the context length."""

    features: Features
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A loaded model and the two batchers that feed it."""

    model: LoadedModel
    images: Batcher[NDArray[np.uint8], Features]
    texts: Batcher[NDArray[np.int64], Features]

    @property
    def batchers(self) -> dict[str, Batcher[Any, Features]]:
        """Both, by the name of their encoder."""
        return {"image": self.images, "text": self.texts}


@dataclass
class Engine:
    """Serves every model of a registry."""

    registry: ModelRegistry
    metrics: Metrics
    options: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        threads = self.options.decode_threads or available_cores()
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._served: dict[str, ServedModel] = {}
        self._classes = self._cache("class", self.options.class_cache_bytes)
        self._matrices = self._cache("matrix", self.options.matrix_cache_bytes)
        self._assembling: dict[bytes, asyncio.Task[Features]] = {}

    # Models

    async def load(self, name: str) -> ServedModel:
        """Load, warm up and serve a model; what is served already goes on meanwhile."""
        if name in self._served:
            return self._served[name]
        model = await asyncio.to_thread(self.registry.load, name)
        served = ServedModel(
            model=model,
            images=self._batcher(model, "image", model.image.slots, model.encode_pixels),
            texts=self._batcher(model, "text", model.text.slots, model.encode_tokens),
        )
        self._served[name] = served
        self.metrics.model_info.labels(*_info(model)).set(1)
        self.metrics.model_load_seconds.labels(name).set(model.load_seconds)
        return served

    async def unload(self, name: str) -> None:
        """Take a model out of service, let its batches end, then free it."""
        model = self.registry.unload(name)
        served = self._served.pop(name)
        for encoder, batcher in served.batchers.items():
            await batcher.drain()
            await batcher.close()
            for lane in ("interactive", "bulk"):
                self.metrics.queue_items.remove(name, encoder, lane)
        self.metrics.model_info.remove(*_info(model))
        self.metrics.model_load_seconds.remove(name)
        model.close()

    def model(self, name: str) -> ServedModel:
        """A model in service.

        Raises:
            UnknownModelError: it is not loaded; the text lists those that are.
        """
        return self._served.get(name) or self._served[self.registry.get(name).name]

    def served(self) -> list[ServedModel]:
        """Every model in service, in the order they were loaded."""
        return list(self._served.values())

    def failures(self) -> list[str]:
        """Why the engine counts as dead; empty while it is well."""
        batchers = (batcher for served in self.served() for batcher in served.batchers.values())
        return [batcher.failure for batcher in batchers if batcher.failure]

    def expected_wait(self) -> float:
        """Seconds the longest queue needs at its present speed."""
        waits = (batcher.expected_wait() for served in self.served() for batcher in served.batchers.values())
        return max(waits, default=1.0)

    async def close(self) -> None:
        """Stop every batcher and free every model."""
        for task in self._assembling.values():
            task.cancel()
        for name in list(self._served):
            served = self._served.pop(name)
            for batcher in served.batchers.values():
                await batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.registry.close()

    # Encoding

    async def encode_images(
        self,
        served: ServedModel,
        pictures: Sequence[bytes],
        *,
        timings: Timings,
        deadline: float | None = None,
    ) -> list[Features | Exception]:
        """Picture files → features (D,) each, or what was wrong with that picture alone.

        Each is queued as soon as it is decoded, so the first are encoded while the last are decoded.
        """
        outcomes = await gather_or_cancel(
            [self._encode_image(served, picture, timings, deadline) for picture in pictures]
        )
        self.metrics.items.labels(served.model.name, "image").inc(len(pictures))
        return outcomes

    async def encode_texts(
        self,
        served: ServedModel,
        texts: Sequence[str],
        *,
        timings: Timings,
        truncate: bool = True,
        lane: Lane = "interactive",
        deadline: float | None = None,
    ) -> list[TextFeatures | Exception]:
        """Texts → features (D,) each, or what was wrong with that text alone."""
        tokenized = await self._tokenize(served, texts)
        fits = [truncate or not text.truncated for text in tokenized]
        outcomes = iter(
            await self._submit(
                served.texts,
                [text.ids for text, fit in zip(tokenized, fits, strict=True) if fit],
                timings,
                lane,
                deadline,
            )
        )
        self.metrics.items.labels(served.model.name, "text").inc(len(texts))
        length = served.model.manifest.text.context_length
        return [
            _text_outcome(next(outcomes), text) if fit else _too_long(length)
            for text, fit in zip(tokenized, fits, strict=True)
        ]

    async def _encode_image(
        self, served: ServedModel, picture: bytes, timings: Timings, deadline: float | None
    ) -> Features | Exception:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        try:
            pixels = await loop.run_in_executor(self._decoders, served.model.preprocess, picture)
        except Exception as error:
            return error
        finally:
            timings.note("decode", time.perf_counter() - began)
        return (await self._submit(served.images, [pixels], timings, "interactive", deadline))[0]

    async def _submit(
        self,
        batcher: Batcher[Any, Features],
        items: Sequence[Any],
        timings: Timings,
        lane: Lane,
        deadline: float | None,
    ) -> list[Features | Exception]:
        answer: Answer[Features] = await batcher.submit(items, lane=lane, deadline=deadline)
        timings.note("queue", answer.queue_seconds)
        timings.note("encode", answer.run_seconds)
        return answer.outcomes

    async def _tokenize(self, served: ServedModel, texts: Sequence[str]) -> list[TokenizedText]:
        tokenizer = served.model.tokenizer
        if len(texts) <= _TOKENIZE_INLINE:
            return tokenizer(texts)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, tokenizer, texts)

    # Classifiers

    async def classifier_for(
        self,
        served: ServedModel,
        labels: Sequence[Label],
        template_set: TemplateSet,
        *,
        activation: Activation | None = None,
    ) -> ZeroShotClassifier:
        """The classifier of a list of labels; what was built before for any list is not built again."""
        matrix = await self.class_matrix(served, labels, template_set)
        return make_classifier(served.model, [label.name for label in labels], matrix, activation)

    async def class_matrix(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet
    ) -> Features:
        """Class embeddings (C, D), from the caches where possible.

        Callers that ask for the same list at the same time share one piece of work, which goes on
        when they leave: the next one to ask finds it done.
        """
        key = matrix_key(served.model.manifest.digest, template_set, labels)
        if (matrix := self._matrices.get(key)) is not None:
            return matrix
        task = self._assembling.get(key)
        if task is None:
            task = asyncio.create_task(self._assemble(served, labels, template_set))
            self._assembling[key] = task
            task.add_done_callback(lambda done: self._keep_matrix(key, done))
        return await asyncio.shield(task)

    async def encode_classes(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet, *, lane: Lane
    ) -> Features:
        """Class embeddings (C, D) of a few labels; those the cache knows are not encoded."""
        digest = served.model.manifest.digest
        keys = [class_key(digest, template_set, label) for label in labels]
        rows = self._classes.get_many(keys)
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            plan = PromptPlan.of([labels[index] for index in missing], template_set)
            outcomes = await self.encode_texts(served, plan.texts, timings=Timings(), lane=lane)
            fresh = plan.embed(np.stack([_features(outcome) for outcome in outcomes]))
            for index, row in zip(missing, fresh, strict=True):
                rows[index] = row
                self._classes.put(keys[index], row)
        return np.stack([row for row in rows if row is not None])

    async def _assemble(
        self, served: ServedModel, labels: Sequence[Label], template_set: TemplateSet
    ) -> Features:
        lane: Lane = "bulk" if self.is_large(labels, template_set) else "interactive"
        rounds = [
            await self.encode_classes(served, some, template_set, lane=lane)
            for some in split(labels, LABELS_A_ROUND)
        ]
        return np.concatenate(rounds)

    def is_large(self, labels: Sequence[Label], template_set: TemplateSet) -> bool:
        """Whether a list has more prompts than a caller should wait for."""
        return count_prompts(labels, template_set) > self.options.background_prompts

    def _keep_matrix(self, key: bytes, done: asyncio.Task[Features]) -> None:
        del self._assembling[key]
        if not done.cancelled() and done.exception() is None:
            self._matrices.put(key, done.result())

    # Wiring

    def _batcher(
        self,
        model: LoadedModel,
        encoder: str,
        slots: int,
        encode: Callable[[Sequence[NDArray[Any]]], Features],
    ) -> Batcher[Any, Features]:
        batcher: Batcher[Any, Features] = Batcher(
            lambda items: _check_finite(encode(items)),
            name=f"{encoder} encoder of {model.name}",
            slots=slots,
            max_batch=self.options.max_batch,
            capacity=self.options.max_queue,
            stall_seconds=self.options.stall_seconds,
            observer=BatchMetrics(self.metrics, model=model.name, encoder=encoder),
        )
        for lane in ("interactive", "bulk"):
            gauge = self.metrics.queue_items.labels(model.name, encoder, lane)
            gauge.set_function(partial(batcher.waiting, lane))
        return batcher

    def _cache(self, name: str, max_bytes: int) -> EmbeddingCache:
        events = self.metrics.cache_events
        cache = EmbeddingCache(max_bytes, on_event=lambda event, count: events.labels(name, event).inc(count))
        self.metrics.cache_bytes.labels(name).set_function(lambda: cache.nbytes)
        return cache


def make_classifier(
    model: LoadedModel, labels: Sequence[str], matrix: Features, activation: Activation | None = None
) -> ZeroShotClassifier:
    """A classifier that scores as the model's manifest says, unless ``activation`` says otherwise."""
    scoring = model.manifest.scoring
    return ZeroShotClassifier(
        labels=tuple(labels),
        matrix=matrix,
        logit_scale=scoring.logit_scale,
        logit_bias=scoring.logit_bias,
        activation=activation or scoring.activation,
    )


def count_prompts(labels: Sequence[Label], template_set: TemplateSet) -> int:
    """How many prompts a list of labels makes."""
    each = len(template_set.templates)
    return sum(each if label.prompts is None else len(label.prompts) for label in labels)


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Runs of at most ``size`` items, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


async def gather_or_cancel(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Like ``asyncio.gather``, but the first failure cancels the rest instead of leaving it running."""
    if len(work) == 1:  # the common case needs no task
        return [await work[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _features(outcome: TextFeatures | Exception) -> Features:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.features


def _check_finite(features: Features) -> list[Features | Exception]:
    """Rows of a batch (N, D); a row with NaN or infinity becomes an error of its own item."""
    finite = np.atleast_1d(np.isfinite(features).all(axis=1))
    return [
        row if good else NonFiniteFeaturesError("the encoder gave values that are not finite")
        for row, good in zip(features, finite, strict=True)
    ]


def _text_outcome(outcome: Features | Exception, text: TokenizedText) -> TextFeatures | Exception:
    if isinstance(outcome, Exception):
        return outcome
    return TextFeatures(features=outcome, truncated=text.truncated)


def _too_long(length: int) -> TextTooLongError:
    return TextTooLongError(f"the text has more than the model's {length} tokens, and truncate is 'error'")


def _info(model: LoadedModel) -> tuple[str, str, str, str]:
    return model.name, model.image.runtime, model.image.provider, model.image.precision

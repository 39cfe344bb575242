"""What the routes call: pictures and texts in, features and classifiers out.

Lives on one event loop. Decoding runs in a pool of threads, each encoder behind a queue of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.cores import available_cores
from models.errors import TextTooLongError, UnknownModelError
from models.manifest import Activation
from models.registry import ModelRegistry
from models.tokenizer import TokenizedText
from prompts.classifier import ZeroShotClassifier
from prompts.labels import Label
from prompts.templates import TemplateSet
from service.batcher import Lane
from service.class_builder import ClassBuilder, SharedEmbeddings, make_classifier
from service.host import LocalHost, ModelHost
from service.metrics import Metrics
from service.served import BatchOptions, EncoderQueue, Features, ServedModel
from service.timings import Timings

T = TypeVar("T")
# Tokenising a few short texts takes less time than handing them to a thread.
_TOKENIZE_INLINE = 8


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much runs at once, and how much is kept. ``decode_threads`` 0: one a core."""

    batches: BatchOptions = field(default_factory=BatchOptions)
    decode_threads: int = 0
    background_prompts: int = 256
    class_cache_bytes: int = 64 * 2**20
    matrix_cache_bytes: int = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """A text's features (D,), whether it was cut to the context length, and its tokens after that."""

    features: Features
    truncated: bool
    tokens: int


class Engine:
    """Serves every model of a registry. ``host`` opens them and runs their encoders: without one, here."""

    def __init__(
        self,
        registry: ModelRegistry,
        metrics: Metrics,
        options: EngineOptions | None = None,
        *,
        host: ModelHost | None = None,
        shared_embeddings: SharedEmbeddings | None = None,
    ) -> None:
        self.registry = registry
        self.metrics = metrics
        self._options = options or EngineOptions()
        self._host = host or LocalHost(registry, self._options.batches, metrics)
        self._decoders = ThreadPoolExecutor(
            self._options.decode_threads or available_cores(), thread_name_prefix="decode"
        )
        self._served: dict[str, ServedModel] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self.classes = ClassBuilder(
            self.encode_prompts,
            metrics,
            class_cache_bytes=self._options.class_cache_bytes,
            matrix_cache_bytes=self._options.matrix_cache_bytes,
            # The bulk lane has no limit: labels that are more than the queue takes are no overload.
            background_prompts=min(self._options.background_prompts, self._options.batches.capacity),
            shared=shared_embeddings,
        )

    # Models

    async def load(self, name: str) -> ServedModel:
        """Load, warm up and serve a model, or the changed files of one that is served already.

        What is served goes on meanwhile. A model that is replaced answers the requests it has, and is
        freed after the last of them.
        """
        async with self._loading.setdefault(name, asyncio.Lock()):
            old = self._served.get(name)
            if old is not None:
                manifest = await asyncio.to_thread(self.registry.manifest, name)
                if manifest == old.model.manifest:
                    return old
            served = await self._host.open(name, again=old is not None)
            if old is not None:
                old.hide()
            self._served[name] = served
            served.show()
        if old is not None:
            await old.retire()
        return served

    async def unload(self, name: str) -> None:
        """Take a model out of service at once; it is freed when the requests it has are answered."""
        served = self.model(name)
        self.registry.unload(name)
        del self._served[name]
        served.hide()
        await served.retire()

    def model(self, name: str) -> ServedModel:
        """A model in service.

        Raises:
            UnknownModelError: it is not loaded; the text lists those that are.
        """
        try:
            return self._served[name]
        except KeyError:
            loaded = ", ".join(self._served) or "none"
            raise UnknownModelError(
                f"no model named {name[:80]!r} is loaded; loaded models: {loaded}"
            ) from None

    def served(self) -> list[ServedModel]:
        """Every model in service, in the order they were loaded."""
        return list(self._served.values())

    def failures(self) -> list[str]:
        """Why the engine counts as dead; empty while it is well."""
        return [failure for queue in self._queues() if (failure := queue.failure)]

    @property
    def reachable(self) -> bool:
        """Whether encoders can be asked now; while they cannot, requests that need them get 503."""
        return self._host.reachable

    def expected_wait(self) -> float:
        """Seconds the longest queue needs at its present speed."""
        return max((queue.expected_wait() for queue in self._queues()), default=1.0)

    async def close(self) -> None:
        """Stop every queue and free every model."""
        await self.classes.close()
        for name in list(self._served):
            await self._served.pop(name).close()
        await self._host.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

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
        timings.model = served.name
        outcomes = await gather_or_cancel(
            [self._encode_image(served, picture, timings, deadline) for picture in pictures]
        )
        self.metrics.items.labels(served.name, "image").inc(len(pictures))
        return outcomes

    async def encode_texts(
        self,
        served: ServedModel,
        texts: Sequence[str | TokenizedText],
        *,
        timings: Timings,
        truncate: bool = True,
        lane: Lane = "interactive",
        deadline: float | None = None,
    ) -> list[TextFeatures | Exception]:
        """Texts, tokenized already or not → features (D,) each, or what was wrong with that text alone."""
        timings.model = served.name
        words = iter(await self._tokenize(served, [text for text in texts if isinstance(text, str)]))
        tokenized = [next(words) if isinstance(text, str) else text for text in texts]
        fits = [truncate or not text.truncated for text in tokenized]
        tokens = [text.ids for text, fit in zip(tokenized, fits, strict=True) if fit]
        outcomes = iter(await self._submit_texts(served, tokens, timings, lane, deadline))
        self.metrics.items.labels(served.name, "text").inc(len(texts))
        length = served.model.manifest.text.context_length
        return [
            _text_outcome(next(outcomes), text) if fit else _too_long(length)
            for text, fit in zip(tokenized, fits, strict=True)
        ]

    async def encode_prompts(self, served: ServedModel, texts: Sequence[str], *, lane: Lane) -> Features:
        """Texts of a classifier → features (N, D); raises the first error there is."""
        outcomes = await self.encode_texts(served, texts, timings=Timings(), lane=lane)
        return np.stack([_features(outcome) for outcome in outcomes])

    async def classifier_for(
        self,
        served: ServedModel,
        labels: Sequence[Label],
        template_set: TemplateSet,
        *,
        activation: Activation | None = None,
    ) -> ZeroShotClassifier:
        """The classifier of a list of labels; see ``ClassBuilder.matrix``."""
        matrix = await self.classes.matrix(served, labels, template_set)
        return make_classifier(served.model, [label.name for label in labels], matrix, activation)

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
            timings.note("decode", time.perf_counter() - began, items=1)
        return (await self._submit(served.images, [pixels], timings, "interactive", deadline))[0]

    async def _submit_texts(
        self,
        served: ServedModel,
        tokens: Sequence[NDArray[np.int64]],
        timings: Timings,
        lane: Lane,
        deadline: float | None,
    ) -> list[Features | Exception]:
        """Queued by length, so that a batch holds texts of like length; answered in the order given."""
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        sorted_tokens = [tokens[place] for place in order]
        answers = await self._submit(served.texts, sorted_tokens, timings, lane, deadline)
        outcomes = dict(zip(order, answers, strict=True))
        return [outcomes[place] for place in range(len(tokens))]

    async def _submit(
        self,
        queue: EncoderQueue,
        items: Sequence[Any],
        timings: Timings,
        lane: Lane,
        deadline: float | None,
    ) -> list[Features | Exception]:
        if not items:
            return []
        answer = await queue.submit(items, lane=lane, deadline=deadline)
        timings.note("queue", answer.queue_seconds, ago=answer.run_seconds, items=len(items))
        timings.note("encode", answer.run_seconds, items=len(items), batch_size=answer.batch_size)
        return answer.outcomes

    async def _tokenize(self, served: ServedModel, texts: Sequence[str]) -> list[TokenizedText]:
        tokenizer = served.model.tokenizer
        if len(texts) <= _TOKENIZE_INLINE:
            return tokenizer(texts)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, tokenizer, texts)

    def _queues(self) -> list[EncoderQueue]:
        return [queue for served in self.served() for queue in served.queues.values()]


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


def _text_outcome(outcome: Features | Exception, text: TokenizedText) -> TextFeatures | Exception:
    if isinstance(outcome, Exception):
        return outcome
    return TextFeatures(features=outcome, truncated=text.truncated, tokens=text.count)


def _too_long(length: int) -> TextTooLongError:
    return TextTooLongError(f"the text has more than the model's {length} tokens, and truncate is 'error'")

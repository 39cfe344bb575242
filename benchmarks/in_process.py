"""What the machine can do without HTTP: encoder, decoding, both together. Each call has its own process."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurements import Key
from benchmarks.subjects import MODEL, SEED, Configuration
from models.cores import available_cores
from models.manifest import IMAGE_GRAPH
from models.registry import LoadedModel, ModelRegistry

T = TypeVar("T")
S = TypeVar("S", bound=Any)
Figures = list[tuple[Key, dict[str, float]]]

DECODING = "decoding"
DECODE = "decode pictures"
ENCODE = "encode pictures"
ENCODE_TEXTS = "encode texts"
BOTH = "decode + encode in process"
OPEN_CLIP = "open_clip"
BATCH = 64


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Call in a fresh process, so that no runtime's threads or memory are left for the next."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def bare_session(models: Path, configuration: Configuration, seconds: float) -> Figures:
    """The image graph in the runtime with nothing set: what the encoder alone can do."""
    run = _bare(models / MODEL / IMAGE_GRAPH, configuration)
    calls = {batch: partial(run, _pixels(batch)) for batch in (1, BATCH)}
    return [
        (Key(configuration.bare, ENCODE, batch), timed(call, batch, seconds)) for batch, call in calls.items()
    ]


def decoding(models: Path, pictures: Sequence[bytes], seconds: float) -> Figures:
    """Picture bytes to pixels on one core and on all of them."""
    preprocess = load_model(models, Configuration(runtime="onnxruntime", precision="fp32")).preprocess
    endless, cores = itertools.cycle(pictures), available_cores()
    with ThreadPoolExecutor(cores) as pool:
        one = timed(lambda: preprocess(next(endless)), 1, seconds)
        every = timed(lambda: list(pool.map(preprocess, pictures)), len(pictures), seconds)
    return [(Key(DECODING, DECODE, 1), one), (Key(DECODING, DECODE, cores), every)]


def encoders(
    models: Path,
    configuration: Configuration,
    pictures: Sequence[bytes],
    texts: Sequence[str],
    seconds: float,
) -> Figures:
    """One runtime and precision as it is served: encoder, decode + encode, and texts.

    ``width`` is how many are under way together; they are spread over the session's slots.
    """
    model = load_model(models, configuration)
    endless, lines = itertools.cycle(pictures), itertools.cycle(texts)
    with ThreadPoolExecutor(available_cores()) as decoders, ThreadPoolExecutor(model.image.slots) as slots:

        def encode(width: int) -> None:
            list(slots.map(model.image.run, _split(_pixels(width), model.image.slots)))

        def encode_texts(width: int) -> None:
            some = list(itertools.islice(lines, width))
            list(slots.map(model.encode_texts, _split(some, model.text.slots)))

        both = decode_ahead(model, decoders, slots, endless)
        calls: list[tuple[str, int, Callable[[], object]]] = [
            *((ENCODE, width, partial(encode, width)) for width in (1, 8, 32, BATCH)),
            (BOTH, 1, lambda: model.encode_images([next(endless)])),
            (BOTH, BATCH, lambda: next(both)),
            *((ENCODE_TEXTS, width, partial(encode_texts, width)) for width in (1, BATCH)),
        ]
        name = configuration.name
        figures = [(Key(name, what, width), timed(call, width, seconds)) for what, width, call in calls]
    model.close()
    return figures


def open_clip_classifier(classes: Sequence[str]) -> Figures:
    """``open_clip.build_zero_shot_classifier`` with the same weights and its 80 ImageNet templates."""
    import open_clip

    from models.architectures import Weights, load

    loaded, templates = load(MODEL, Weights(seed=SEED)), open_clip.OPENAI_IMAGENET_TEMPLATES

    def build(names: Sequence[str]) -> float:
        began = time.perf_counter()
        open_clip.build_zero_shot_classifier(loaded.model, loaded.tokenizer, names, templates)
        return time.perf_counter() - began

    build(classes[:1])
    prompts = len(classes) * len(templates)
    return [(Key(OPEN_CLIP, "build classifier, 80 templates"), {"rate": prompts / build(classes)})]


def load_model(models: Path, configuration: Configuration) -> LoadedModel:
    return ModelRegistry(models, options=configuration.options).load(MODEL)


def _pixels(batch: int) -> NDArray[np.uint8]:
    """Pixels uint8 (batch, 224, 224, 3); what they show does not change how long they take."""
    return np.full((batch, 224, 224, 3), 128, np.uint8)


def _bare(graph: Path, configuration: Configuration) -> Callable[[NDArray[np.uint8]], object]:
    if configuration.runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixels": pixels})
    import openvino

    hints = {"fp32": "f32", "bf16": "bf16"}
    settings = {"INFERENCE_PRECISION_HINT": hints[configuration.precision]}
    compiled: Callable[[NDArray[np.uint8]], object] = openvino.Core().compile_model(graph, "CPU", settings)
    return compiled


def decode_ahead(
    model: LoadedModel, decoders: ThreadPoolExecutor, slots: ThreadPoolExecutor, pictures: Iterator[bytes]
) -> Iterator[list[NDArray[np.float32]]]:
    """Features of ``BATCH`` pictures; while they are encoded the next are decoded, as one does by hand."""

    def decode() -> list[Future[NDArray[np.uint8]]]:
        return [decoders.submit(model.preprocess, next(pictures)) for _ in range(BATCH)]

    following = decode()
    while True:
        ready, following = [one.result() for one in following], decode()
        yield list(slots.map(model.encode_pixels, _split(ready, model.image.slots)))


def _split(items: S, parts: int) -> list[S]:
    """``items`` in at most ``parts`` runs of like length."""
    size = -(-len(items) // parts)
    return [items[first : first + size] for first in range(0, len(items), size)]


def timed(call: Callable[[], object], items: int, seconds: float) -> dict[str, float]:
    """Items a second and the median time of a call, after one call to warm up."""
    call()
    times: list[float] = []
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not times:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return {"rate": items * len(times) / elapsed, "p50_ms": 1000 * median(times)}

"""``runtime: auto``: the fastest way to run a model on this machine that still gives what the model gives.

Every candidate runs the check set once. One that is too far from the reference is out, the fastest of
the others is taken, and the verdicts are kept: the next start reads them and opens only what it needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.cores import available_cores
from models.errors import RuntimeUnavailableError
from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, ModelManifest
from models.parity import compare
from models.preprocess import Preprocessor
from models.runtimes import RuntimeOptions, Session, open_session
from models.tokenizer import Tokenizer

_LOG = logging.getLogger("clipserve.runtime")
Features = NDArray[np.float32]

# The least cosine between a feature and the reference's: ONNX Runtime in fp32. In an int8 graph the last bit
# in which two runtimes differ can be the one that decides how an activation is rounded: ViT-B-32 comes to
# 0.9998 in fp32 and 0.9995 in bf16.
MIN_COSINE = {"fp32": 0.99999, "bf16": 0.999}
_MIN_COSINE_INT8 = 0.999
_BATCH = 8
_MAX_PIXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one candidate did. The speed was measured once, beside whatever else ran: it is no benchmark."""

    runtime: Literal["onnxruntime", "openvino"]
    precision: Literal["fp32", "bf16"]
    min_cosine: float
    images_per_second: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether every feature is near enough to the reference's."""
        return self.min_cosine >= self.least

    def __str__(self) -> str:
        return (
            f"{self.runtime} {self.precision}: smallest cosine {self.min_cosine:.6f}"
            f" (at least {self.least}), {self.images_per_second:.0f} images/s"
        )


def resolve(
    folder: Path, manifest: ModelManifest, tokenizer: Tokenizer, options: RuntimeOptions
) -> RuntimeOptions:
    """Options that leave neither runtime nor precision open.

    Raises:
        RuntimeUnavailableError: bf16 was asked for, and cannot run here or is too far from fp32.
    """
    candidates = _candidates(options)
    if len(candidates) == 1 and candidates[0].precision != "bf16":
        return candidates[0]
    wanted = {(one.runtime, one.precision) for one in candidates}
    judged = [one for one in _recall(manifest, options) if (one.runtime, one.precision) in wanted]
    if len(judged) < len(wanted):
        judged = _judge(folder, manifest, tokenizer, candidates)
        _remember(manifest, options, judged)
    for one in judged:
        if not one.passed:
            _LOG.warning("%s: not used: %s", manifest.name, one)
    passed = [one for one in judged if one.passed]
    if not passed:
        raise RuntimeUnavailableError(f"{manifest.name}: {judged[0]}; use precision fp32")
    best = max(passed, key=lambda one: one.images_per_second)
    return replace(options, runtime=best.runtime, precision=best.precision)


def _candidates(options: RuntimeOptions) -> list[RuntimeOptions]:
    """What may run here and is not ruled out by ``options``; the reference first."""
    onnxruntime = replace(options, runtime="onnxruntime", precision="fp32")
    if options.runtime == "onnxruntime":
        return [replace(options, precision="fp32" if options.precision == "auto" else options.precision)]
    if options.runtime == "auto" and (options.provider in {"cuda", "tensorrt"} or _has_cuda(options)):
        return [onnxruntime]
    if options.runtime == "auto" and importlib.util.find_spec("openvino") is None:
        _LOG.info("openvino is not installed: models run in ONNX Runtime")
        return [onnxruntime]
    openvino = [replace(options, runtime="openvino", precision="fp32")]
    if options.precision != "fp32":
        from models.runtimes.openvino import computes_bf16

        if computes_bf16() or options.precision == "bf16":
            openvino.append(replace(options, runtime="openvino", precision="bf16"))
    found = openvino if options.runtime == "openvino" else [onnxruntime, *openvino]
    return [one for one in found if options.precision in {"auto", one.precision}]


def _has_cuda(options: RuntimeOptions) -> bool:
    if options.provider == "cpu":
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _judge(
    folder: Path, manifest: ModelManifest, tokenizer: Tokenizer, candidates: Sequence[RuntimeOptions]
) -> list[Verdict]:
    """Run the check set through the reference and through every candidate."""
    _LOG.info("%s: first load on this machine: comparing %d ways to run it", manifest.name, len(candidates))
    from models.check_set import CheckSet  # draws and samples: imported by first loads alone

    checks = CheckSet.build(size=manifest.image.size, context_length=manifest.text.context_length)
    preprocess = Preprocessor(manifest.image, max_pixels=_MAX_PIXELS, exif=False)
    pixels = [np.stack([preprocess(picture) for picture in some]) for some in _batches(checks.pictures)]
    tokens = [tokenizer.pad([text.ids for text in tokenizer(some)]) for some in _batches(checks.texts)]
    reference = replace(candidates[0], runtime="onnxruntime", precision="fp32")
    images, texts, speed = _run(folder, reference, pixels, tokens)
    least = dict.fromkeys(MIN_COSINE, _MIN_COSINE_INT8) if manifest.precision == "int8" else MIN_COSINE
    verdicts = []
    for candidate in candidates:
        if candidate == reference:
            verdicts.append(
                Verdict(
                    runtime="onnxruntime",
                    precision="fp32",
                    min_cosine=1.0,
                    images_per_second=speed,
                    least=least["fp32"],
                )
            )
            continue
        its_images, its_texts, its_speed = _run(folder, candidate, pixels, tokens)
        cosines = (
            compare("image", images, its_images).min_cosine,
            compare("text", texts, its_texts).min_cosine,
        )
        precision: Literal["fp32", "bf16"] = "bf16" if candidate.precision == "bf16" else "fp32"
        verdicts.append(
            Verdict(
                runtime="openvino",
                precision=precision,
                min_cosine=min(cosines),
                images_per_second=its_speed,
                least=least[precision],
            )
        )
    return verdicts


def _run(
    folder: Path, options: RuntimeOptions, pixels: Sequence[NDArray[Any]], tokens: Sequence[NDArray[Any]]
) -> tuple[Features, Features, float]:
    """Features of all pictures and of all texts, and pictures a second with every slot in use."""
    image, text = open_session(folder / IMAGE_GRAPH, options), open_session(folder / TEXT_GRAPH, options)
    try:
        image.run(pixels[0])
        began = time.perf_counter()
        images = _run_all(image, pixels)
        speed = len(images) / (time.perf_counter() - began)
        return images, _run_all(text, tokens), speed
    finally:
        image.close()
        text.close()


def _run_all(session: Session, batches: Sequence[NDArray[Any]]) -> Features:
    with ThreadPoolExecutor(session.slots) as threads:
        return np.concatenate(list(threads.map(session.run, batches)))


def _batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


def _recall(manifest: ModelManifest, options: RuntimeOptions) -> list[Verdict]:
    if options.cache_dir is None:
        return []
    try:
        kept = json.loads(_file(manifest, options.cache_dir).read_text())
        return [Verdict(**one) for one in kept]
    except (OSError, ValueError, TypeError):
        return []


def _remember(manifest: ModelManifest, options: RuntimeOptions, verdicts: Sequence[Verdict]) -> None:
    if options.cache_dir is None:
        return
    path = _file(manifest, options.cache_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps([asdict(one) for one in verdicts], indent=1))
        part.replace(path)
    except OSError as error:  # a read-only disk costs time at the next start, no more
        _LOG.warning("%s: the verdicts cannot be kept: %s", manifest.name, error)


def _file(manifest: ModelManifest, cache_dir: Path) -> Path:
    """A verdict holds for these weights on this kind of processor with these versions."""
    facts = (manifest.digest, _processor(), available_cores(), version("onnxruntime"), version("openvino"))
    return cache_dir / f"verdicts-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

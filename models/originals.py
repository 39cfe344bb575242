"""The files a model was pulled as, run as their makers run them, and compared with what was made of them.

Nothing here reads the rewrapped graphs' own preparation: pixels are normalised and attention masks made in
numpy, from what the repository's configs say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper
from tokenizers import Tokenizer as Backend

from models.check_set import CheckSet
from models.errors import ExportError, PullError
from models.layouts import Facts, MaskRule
from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER, ParityReport, TextSpec
from models.parity import BATCHES, GATES, batches, compare, top1_agreement
from models.preprocess import Preprocessor
from models.rewrap import dims, image_input, mask_input, pick_output, token_input
from models.runtimes import RuntimeOptions, Session, open_session
from models.tokenizer import Tokenizer

Batch = NDArray[Any]
Features = NDArray[np.float32]

_GATE = GATES["fp32"]  # the same arithmetic on the same inputs, whatever its precision
_SCORES = "logits_per_image"
_MAX_PIXELS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the comparison found: ``scoring`` is (logit scale, logit bias), None where no graph tells."""

    text: TextSpec
    report: ParityReport
    scoring: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of an original graph: its name, numpy type and whether its batch is fixed at one."""

    name: str
    kind: np.dtype[Any]
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, value: ValueInfoProto) -> Input:
        """Read it from the graph's declaration."""
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return cls(name=value.name, kind=kind, shape=dims(value))


@dataclass(frozen=True, kw_only=True)
class Originals:
    """The two towers as they came; one session serves both where the graph is combined."""

    facts: Facts
    text: TextSpec
    mask: MaskRule
    image_output: str
    text_output: str
    _picture: Input
    _tokens: Input
    _mask: Input | None
    _image: ort.InferenceSession
    _text: ort.InferenceSession

    @classmethod
    def open(
        cls, facts: Facts, image: ModelProto, text: ModelProto, paths: tuple[Path, Path], tokenizer: Path
    ) -> Originals:
        """Load the graphs from ``paths`` (image, text; equal where combined).

        Raises:
            ExportError: a graph has not the inputs and outputs of a CLIP tower.
        """
        picture, tokens, mask = image_input(image), token_input(text), mask_input(text)
        if picture is None or tokens is None:
            raise ExportError(f"{paths[0].name} takes no pictures, or {paths[1].name} no tokens")
        length = dims(tokens)[1]
        spec = _text_spec(facts, tokenizer, length or facts.context_length)
        first = _open(paths[0])
        return cls(
            facts=facts,
            text=spec,
            mask=facts.mask if facts.mask != "to_end" or spec.end_token is not None else "not_pad",
            image_output=pick_output(image, facts.image_outputs),
            text_output=pick_output(text, facts.text_outputs),
            _picture=Input.of(picture),
            _tokens=Input.of(tokens),
            _mask=None if mask is None else Input.of(mask),
            _image=first,
            _text=first if paths[0] == paths[1] else _open(paths[1]),
        )

    @property
    def combined(self) -> bool:
        """Both towers come from one graph, which wants both inputs whichever output is asked for."""
        return self._image is self._text

    @property
    def one_by_one(self) -> bool:
        """A graph was exported for a batch of one."""
        return 1 in {self._picture.shape[0], self._tokens.shape[0]}

    @property
    def any_length(self) -> bool:
        """The text graph is declared for sequences of any length."""
        return self._tokens.shape[1] is None

    def embedding_dim(self) -> int:
        """D of the features.

        Raises:
            ExportError: the towers give features of different sizes.
        """
        size = self.facts.image.size
        image = self.encode_pixels(np.zeros((1, size, size, 3), np.uint8))
        text = self.encode_tokens(np.full((1, self.text.context_length), self.text.pad_token), [1])
        if image.ndim != 2 or image.shape != text.shape:
            raise ExportError(
                f"{self.image_output} gives features {image.shape} and {self.text_output} {text.shape}; the"
                " towers of one CLIP model give (batch, D) with the same D"
            )
        return int(image.shape[1])

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> Features:
        """``pixels`` uint8 (N, H, W, 3) → features float32 (N, D), normalised."""
        feeds = self._picture_feed(pixels)
        if self.combined:
            tokens = np.full((len(pixels), self.text.context_length), self.text.pad_token)
            feeds |= self._token_feed(tokens, [1] * len(pixels))
        return self._run(self._image, self.image_output, feeds)

    def encode_tokens(self, tokens: NDArray[np.int64], lengths: Sequence[int]) -> Features:
        """``tokens`` (N, L), padded, of which ``lengths`` are real → features float32 (N, D), normalised."""
        feeds = self._token_feed(tokens, lengths)
        if self.combined:
            size = self.facts.image.size
            feeds |= self._picture_feed(np.zeros((len(tokens), size, size, 3), np.uint8))
        return self._run(self._text, self.text_output, feeds)

    def scoring(
        self, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], lengths: Sequence[int]
    ) -> tuple[float, float] | None:
        """Logit scale and bias, as the straight line between the combined graph's cosines and its scores.

        None where the graph gives no scores, or its scores lie on no line.
        """
        if (
            not self.combined
            or self._picture.shape[0] == 1
            or _SCORES not in {output.name for output in self._image.get_outputs()}
        ):
            return None
        wanted = [_SCORES, self.image_output, self.text_output]
        count = min(len(pixels), len(tokens))  # some exports tie the two batches to each other
        feeds = self._picture_feed(pixels[:count]) | self._token_feed(tokens[:count], lengths[:count])
        scores, images, texts = (value.astype(np.float64) for value in self._image.run(wanted, feeds))
        cosines = (_unit(images) @ _unit(texts).T).ravel()
        return _line(cosines, scores.ravel(), biased=self.facts.activation == "sigmoid")

    def _picture_feed(self, pixels: NDArray[np.uint8]) -> dict[str, Batch]:
        spec = self.facts.image
        unit = pixels.astype(np.float32) / np.float32(255)
        values = (unit - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
        return {self._picture.name: values.transpose(0, 3, 1, 2).astype(self._picture.kind)}

    def _token_feed(self, tokens: NDArray[np.int64], lengths: Sequence[int]) -> dict[str, Batch]:
        feeds: dict[str, Batch] = {self._tokens.name: tokens.astype(self._tokens.kind)}
        if self._mask is not None:
            seen = np.arange(tokens.shape[1]) < np.array(lengths)[:, None]
            feeds[self._mask.name] = (seen | (self.mask == "ones")).astype(self._mask.kind)
        return feeds

    def _run(self, session: ort.InferenceSession, output: str, feeds: Mapping[str, Batch]) -> Features:
        """One batch, or item by item where the graph was exported for a batch of one."""
        fixed = any(value.shape[0] == 1 for value in (self._picture, self._tokens) if value.name in feeds)
        count = len(next(iter(feeds.values())))
        parts = [slice(i, i + 1) for i in range(count)] if fixed else [slice(None)]
        try:
            rows = [
                session.run([output], {name: value[part] for name, value in feeds.items()})[0]
                for part in parts
            ]
        except Exception as error:  # ONNX Runtime's own error classes share no public base
            raise ExportError(f"the original fails on a batch of {count}: {_first_line(error)}") from error
        return _unit(np.concatenate(rows).astype(np.float32))


def check(original: Originals, folder: Path, *, reference: str) -> Checked:
    """Compare the rewrapped pair in ``folder`` with the original over generated pictures and texts.

    ``dynamic_length`` of the answer is true only where texts cut to the longest of their batch were shown
    to give the same features as texts padded to the context.

    Raises:
        ExportError: the features differ; the text has the figures.
    """
    known = CheckSet.build(size=original.facts.image.size, context_length=original.text.context_length)
    preprocess = Preprocessor(original.facts.image, max_pixels=_MAX_PIXELS, exif=False)
    pixels = [preprocess(picture) for picture in known.pictures]
    texts = _Texts.of(known.texts, original.text, folder / TOKENIZER)
    options = RuntimeOptions(runtime="onnxruntime", provider="cpu", precision="fp32")
    image, text = (open_session(folder / name, options) for name in (IMAGE_GRAPH, TEXT_GRAPH))
    wanted = (
        _in_batches(pixels, lambda rows: original.encode_pixels(np.stack(rows))),
        _in_batches(texts.ids, lambda rows: original.encode_tokens(texts.padded(rows), _lengths(rows))),
    )
    found = (
        _in_batches(pixels, lambda rows: image.run(np.stack(rows))),
        _in_batches(texts.ids, lambda rows: text.run(texts.padded(rows))),
    )
    report = ParityReport(
        reference=reference,
        batches=BATCHES,
        text_lengths=tuple(sorted(set(_lengths(texts.ids)))),
        image=compare("image", wanted[0], found[0]),
        text=compare("text", wanted[1], found[1]),
        top1_agreement=top1_agreement(wanted, found, texts.distinct()),
    )
    refusals = _GATE.refusals(report)
    if refusals:
        raise ExportError(f"the rewrapped graphs differ from the original: {'; '.join(refusals)}")
    dynamic = original.any_length and _same_when_cut(text, texts, wanted[1])
    return Checked(
        text=original.text.model_copy(update={"dynamic_length": dynamic}),
        report=report,
        scoring=original.scoring(np.stack(pixels[:16]), texts.padded(texts.ids), _lengths(texts.ids)),
    )


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Token ids of the check texts at their real lengths, and how to pad them."""

    ids: Sequence[NDArray[np.int64]]
    spec: TextSpec
    tokenizer: Tokenizer

    @classmethod
    def of(cls, texts: Sequence[str], spec: TextSpec, tokenizer_file: Path) -> _Texts:
        tokenizer = Tokenizer(tokenizer_file, spec.model_copy(update={"dynamic_length": True}))
        return cls(
            ids=[text.ids for text in tokenizer(texts) if len(text.ids)], spec=spec, tokenizer=tokenizer
        )

    def padded(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Int64 (N, context_length)."""
        missing = [self.spec.context_length - len(ids) for ids in rows]
        pad = self.spec.pad_token
        return np.stack(
            [np.pad(ids, (0, count), constant_values=pad) for ids, count in zip(rows, missing, strict=True)]
        )

    def distinct(self) -> NDArray[np.intp]:
        """One text of each set of texts with the same tokens."""
        return np.unique(self.padded(self.ids), axis=0, return_index=True)[1]


def _same_when_cut(text: Session, texts: _Texts, wanted: Features) -> bool:
    try:
        cut = _in_batches(texts.ids, lambda rows: text.run(texts.tokenizer.pad(rows)))
    except Exception:  # a graph declared for any length may still have one folded in
        return False
    return compare("text", wanted, cut).min_cosine >= _GATE.cosine


def _in_batches(items: Sequence[NDArray[Any]], run: Callable[[Sequence[NDArray[Any]]], Features]) -> Features:
    """Features (N, D) of all items, in batches of 1, 2 and 7."""
    return np.concatenate([run(items[part]) for part in batches(len(items))])


def _lengths(rows: Sequence[NDArray[Any]]) -> list[int]:
    return [len(ids) for ids in rows]


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    unit: NDArray[Any] = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return unit


def _line(x: NDArray[np.float64], y: NDArray[np.float64], *, biased: bool) -> tuple[float, float] | None:
    """Slope and intercept of y over x; None where the points lie on no rising line."""
    columns = np.stack([x, np.ones_like(x)], axis=1)[:, : 1 + biased]
    slope, *bias = np.linalg.lstsq(columns, y, rcond=None)[0].tolist()
    intercept = bias[0] if bias else 0.0
    astray = np.abs(slope * x + intercept - y).max()
    if slope <= 0 or astray > 0.01 * max(1.0, float(np.abs(y).max())):
        return None
    return slope, intercept


def _open(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said once
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error classes share no public base
        raise ExportError(f"ONNX Runtime cannot load {path.name}: {_first_line(error)}") from error


def _text_spec(facts: Facts, tokenizer_file: Path, context_length: int) -> TextSpec:
    """How to use the repository's tokenizer; the end token is what it puts behind every text.

    Raises:
        PullError: the file is no tokenizer, or lacks the padding token its config names.
    """
    try:
        backend = Backend.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise PullError(f"{tokenizer_file.name} is no tokenizer file: {error}") from error
    padding, name = backend.padding, facts.pad_token_name
    pad = backend.token_to_id(name) if name is not None else padding["pad_id"] if padding else 0
    if pad is None:
        raise PullError(f"{tokenizer_file.name} has no padding token {name!r}")
    backend.no_padding()
    backend.no_truncation()
    encoding = backend.encode("a")
    ends = bool(encoding.ids) and encoding.special_tokens_mask[-1] == 1
    return TextSpec(
        context_length=context_length,
        cleaning=facts.cleaning,
        pad_token=pad,
        end_token=encoding.ids[-1] if ends else None,
    )


def _first_line(error: Exception) -> str:
    """ONNX Runtime's messages run to pages; their first line says it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""Whether a model folder is what its manifest says and keeps the contract, found out by running it.

Needs nothing that serving does not need: no torch, no original to compare with. What an export proved against
the original stays proved as long as the hashes match; the rest is properties any model here must have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer as Vocabulary

from models.check_set import CheckSet
from models.errors import ModelError
from models.manifest import IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER, ModelManifest, Precision
from models.parity import BATCHES
from models.preprocess import Preprocessor
from models.tokenizer import TokenizedText, Tokenizer

Features = NDArray[np.float32]
Items = Sequence[NDArray[Any]]
_Found = TypeVar("_Found")

# The least cosine of an item with itself in other company. An int8 graph scales its activations by the whole
# batch, so there an item does notice its neighbours.
_SAME: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.97}
_UNIT_TOLERANCE = 1e-3
_MAX_PIXELS = 1 << 24
_PLAIN = "a photo of a dog"  # of the check set, and of words that any model knows


@dataclass(frozen=True, kw_only=True)
class Check:
    """One property: its name, whether it holds, and the figures or the reason."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found, in the order in which it looked."""

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Every property holds."""
        return all(check.passed for check in self.checks)


def verify(folder: Path, *, threads: int = 0) -> VerifyReport:
    """Check the model in ``folder``: manifest, hashes, tokenizer, contract, batch and length invariance.

    A broken model raises nothing: what is wrong is a failed check, and what cannot be looked at because of
    it is left out. Runs on the CPU, with ``threads`` threads (0 lets ONNX Runtime choose).
    """
    checks = _Checks()
    manifest = checks.look("manifest", lambda: _manifest(folder))
    if manifest is None:
        return VerifyReport(model=folder.name, checks=tuple(checks.done))
    checks.look("hashes", lambda: _hashes(manifest, folder))
    checks.look("parity report", lambda: _parity_report(manifest))
    known = CheckSet.build(size=manifest.image.size, context_length=manifest.text.context_length)
    tokens = checks.look("tokenizer", lambda: _tokens(manifest, folder, known.texts))
    image = checks.look("image contract", lambda: _ImageGraph.open(manifest, folder, threads))
    text = checks.look("text contract", lambda: _TextGraph.open(manifest, folder, threads))
    if image is not None:
        preprocess = Preprocessor(manifest.image, max_pixels=_MAX_PIXELS, exif=False)
        _look_at_tower(checks, "image", image, [preprocess(picture) for picture in known.pictures])
    if text is not None and tokens is not None:
        _look_at_tower(checks, "text", text, [row.ids for row in tokens])
        if manifest.text.dynamic_length:
            checks.look("text length invariance", lambda: text.length_invariance([row.ids for row in tokens]))
    return VerifyReport(model=manifest.name, checks=tuple(checks.done))


class _BrokenError(Exception):
    """A property does not hold; the text says why."""


class _Checks:
    """Collects what was looked at."""

    def __init__(self) -> None:
        self.done: list[Check] = []

    def look(self, name: str, find: Callable[[], tuple[_Found, str]]) -> _Found | None:
        """Record whether ``find`` succeeds; its value, or None when the property does not hold."""
        try:
            value, detail = find()
        except (_BrokenError, ModelError) as error:
            self.done.append(Check(name=name, passed=False, detail=str(error)))
            return None
        self.done.append(Check(name=name, passed=True, detail=detail))
        return value


# --- What needs no graph -------------------------------------------------------------------------------


def _manifest(folder: Path) -> tuple[ModelManifest, str]:
    manifest = ModelManifest.read(folder)
    return manifest, f"{manifest.architecture}, {manifest.precision}, {manifest.embedding_dim} dimensions"


def _hashes(manifest: ModelManifest, folder: Path) -> tuple[None, str]:
    manifest.verify_files(folder)
    size = sum(entry.size for entry in manifest.files.values())
    return None, f"{len(manifest.files)} files, {size / 1e6:.1f} MB"


def _parity_report(manifest: ModelManifest) -> tuple[None, str]:
    report = manifest.parity
    if report is None:
        raise _BrokenError("the manifest holds no parity report: nothing was compared with an original")
    smallest = min(report.image.min_cosine, report.text.min_cosine)
    return None, f"smallest cosine {smallest:.6f} against {report.reference}"


def _tokens(manifest: ModelManifest, folder: Path, texts: Sequence[str]) -> tuple[list[TokenizedText], str]:
    """Token ids of the texts, all of them checked; an error names the text it is about."""
    spec = manifest.text
    # At their real lengths, whatever the manifest says: padding would hide where a text ends.
    open_ended = spec.model_copy(update={"dynamic_length": True})
    bare = Tokenizer(folder / TOKENIZER, open_ended)(texts)
    for text, row in zip(texts, bare, strict=True):
        ids = row.ids.tolist()
        if len(ids) > spec.context_length:
            raise _BrokenError(f"{text[:30]!r} has {len(ids)} tokens, more than {spec.context_length}")
        if spec.end_token is not None and ids[-1:] != [spec.end_token]:
            raise _BrokenError(f"{text[:30]!r} does not end with the end token {spec.end_token}")
    back = _read_back(folder, bare[texts.index(_PLAIN)].ids)
    if back != _letters(_PLAIN):
        raise _BrokenError(f"{_PLAIN!r} comes back as {back!r}: the vocabulary does not know its words")
    cut = sum(row.truncated for row in bare)
    if not cut:
        raise _BrokenError(f"no text of the check set is over-long for a context of {spec.context_length}")
    if len({row.ids.tobytes() for row in bare}) < len(texts) // 2:
        raise _BrokenError("most texts of the check set get the same ids")
    return Tokenizer(folder / TOKENIZER, spec)(texts), f"{len(texts)} texts, {cut} of them truncated"


def _read_back(folder: Path, ids: NDArray[np.int64]) -> str:
    """The letters that the ids stand for; spaces and word marks differ from one tokenizer to the next."""
    vocabulary = Vocabulary.from_file(str(folder / TOKENIZER))
    special = vocabulary.get_added_tokens_decoder()
    tokens = [vocabulary.id_to_token(i) or "" for i in ids.tolist() if i not in special]
    return _letters("".join(tokens).replace("</w>", ""))


def _letters(text: str) -> str:
    return "".join(char for char in text.lower() if char.isascii() and char.isalpha())


# --- The graphs ----------------------------------------------------------------------------------------


class _Graph:
    """A graph that was seen to declare the contract."""

    file: str
    input: str
    kind: str

    def __init__(self, manifest: ModelManifest, session: ort.InferenceSession) -> None:
        self.manifest = manifest
        self._session = session
        self.same = _SAME[manifest.precision]

    def __call__(self, batch: NDArray[Any]) -> Features:
        """One batch → features (N, D)."""
        try:
            features: Features = self._session.run(["features"], {self.input: batch})[0]
        except Exception as error:  # ONNX Runtime's own error classes share no public base
            raise _BrokenError(f"fails on a batch {batch.shape}: {str(error)[:200]}") from error
        return features

    @classmethod
    def session(cls, manifest: ModelManifest, folder: Path, threads: int) -> ort.InferenceSession:
        """Load the graph and compare what it declares with the contract, dimension by dimension."""
        session = _open(folder / cls.file, threads)
        sides = (
            ("input", session.get_inputs(), cls.input, cls.kind, (None, *cls.shape(manifest))),
            ("output", session.get_outputs(), "features", "tensor(float)", (None, manifest.embedding_dim)),
        )
        for side, declared, name, kind, shape in sides:
            names = [value.name for value in declared]
            if names != [name]:
                swapped = _swapped(cls.file, names)
                raise _BrokenError(f"{cls.file} has the {side} {', '.join(names)}, not {name}{swapped}")
            found = declared[0]
            if found.type != kind or not _fits(found.shape, shape):
                is_, must = f"{found.type} {_written(found.shape)}", f"{kind} {_written(shape)}"
                raise _BrokenError(f"{cls.file}: {name} is {is_}, not {must}")
        return session

    @classmethod
    def shape(cls, manifest: ModelManifest) -> tuple[int | None, ...]:
        """The input's dimensions behind the batch; None for any."""
        raise NotImplementedError

    def join(self, items: Items) -> NDArray[Any]:
        """Items of one batch, side by side."""
        return np.stack(items)


class _ImageGraph(_Graph):
    file, input, kind = IMAGE_GRAPH, "pixels", "tensor(uint8)"

    @classmethod
    def open(cls, manifest: ModelManifest, folder: Path, threads: int) -> tuple[_ImageGraph, str]:
        return cls(manifest, cls.session(manifest, folder, threads)), _contract(cls, manifest)

    @classmethod
    def shape(cls, manifest: ModelManifest) -> tuple[int | None, ...]:
        return (manifest.image.size, manifest.image.size, 3)


class _TextGraph(_Graph):
    file, input, kind = TEXT_GRAPH, "tokens", "tensor(int64)"

    @classmethod
    def open(cls, manifest: ModelManifest, folder: Path, threads: int) -> tuple[_TextGraph, str]:
        return cls(manifest, cls.session(manifest, folder, threads)), _contract(cls, manifest)

    @classmethod
    def shape(cls, manifest: ModelManifest) -> tuple[int | None, ...]:
        return (None if manifest.text.dynamic_length else manifest.text.context_length,)

    def join(self, items: Items, length: int = 0) -> NDArray[Any]:
        """Rows padded to the longest, or to ``length``."""
        longest = max(length, *(len(row) for row in items), 1)
        rows = np.full((len(items), longest), self.manifest.text.pad_token, np.int64)
        for row, ids in zip(rows, items, strict=True):
            row[: len(ids)] = ids
        return rows

    def length_invariance(self, items: Items) -> tuple[None, str]:
        """Each text at its real length against the same padded to the whole context."""
        cut = np.concatenate([self(self.join([row])) for row in items])
        padded = np.concatenate([self(self.join([row], self.manifest.text.context_length)) for row in items])
        return None, _same(cut, padded, self.same, "cut to their length and padded")


def _look_at_tower(checks: _Checks, name: str, graph: _Graph, items: Items) -> None:
    alone = checks.look(f"{name} features", lambda: _features(graph, items))
    if alone is not None:
        checks.look(f"{name} batch invariance", lambda: _batch_invariance(graph, items, alone))


def _features(graph: _Graph, items: Items) -> tuple[Features, str]:
    """Features of every item alone: finite, of length one, and not all the same."""
    rows = np.concatenate([graph(graph.join([item])) for item in items])
    if rows.shape != (len(items), graph.manifest.embedding_dim):
        raise _BrokenError(f"shape {rows.shape}, not {(len(items), graph.manifest.embedding_dim)}")
    broken = int((~np.isfinite(rows).all(axis=1)).sum())
    if broken:
        raise _BrokenError(f"{broken} of {len(items)} items have features that are not finite")
    astray = float(np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max())
    if astray > _UNIT_TOLERANCE:
        raise _BrokenError(f"features are not L2-normalised: a length is {astray:.3g} away from 1")
    spread = float(np.abs(rows - rows[0]).max())
    if spread < 1e-6:
        raise _BrokenError("all items have the same features")
    return rows, f"{len(items)} items, lengths within {astray:.1e} of 1"


def _batch_invariance(graph: _Graph, items: Items, alone: Features) -> tuple[None, str]:
    """Each item alone against the same item in batches of 2 and 7."""
    found = []
    for size in BATCHES[1:]:
        usable = len(items) // size * size
        batches = [graph(graph.join(items[start : start + size])) for start in range(0, usable, size)]
        found.append(_same(np.concatenate(batches), alone[:usable], graph.same, f"in batches of {size}"))
    return None, "; ".join(found)


def _same(rows: Features, others: Features, least: float, how: str) -> str:
    if rows.shape != others.shape:
        raise _BrokenError(f"features {rows.shape} and {others.shape} {how}")
    cosine = float((rows.astype(np.float64) * others).sum(axis=1).min())
    if not cosine >= least:
        raise _BrokenError(f"smallest cosine {cosine:.6f} {how}, below {least}")
    return f"smallest cosine {cosine:.6f} {how}"


def _open(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails is raised, and said once
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error classes share no public base
        what = "is missing" if not path.is_file() else f"cannot be loaded: {str(error)[:200]}"
        raise _BrokenError(f"{path.name} {what}") from error


def _fits(declared: Sequence[object], shape: Sequence[int | None]) -> bool:
    """A dimension without a number takes any size; a number must be the one the contract has."""
    return len(declared) == len(shape) and all(
        not isinstance(found, int) or found == wanted for found, wanted in zip(declared, shape, strict=True)
    )


def _written(shape: Sequence[object]) -> str:
    return "(" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + ")"


def _swapped(file: str, names: Sequence[str]) -> str:
    other = {IMAGE_GRAPH: "tokens", TEXT_GRAPH: "pixels"}[file]
    return f": {IMAGE_GRAPH} and {TEXT_GRAPH} are swapped" if other in names else ""


def _contract(graph: type[_Graph], manifest: ModelManifest) -> str:
    shape = _written((None, *graph.shape(manifest)))
    return f"{graph.input} {shape} → features {_written((None, manifest.embedding_dim))}"

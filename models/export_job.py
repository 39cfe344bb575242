"""One export under way: towers written by one recipe after another until they give what open_clip gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import parity, towers
from models.calibration import Calibration, Samples
from models.check_set import CheckSet
from models.errors import ExportError, ManifestError
from models.manifest import (
    IMAGE_GRAPH,
    TEXT_GRAPH,
    TOKENIZER,
    ImageSpec,
    ParityReport,
    Precision,
    TextSpec,
    TowerParity,
)
from models.parity import Features
from models.precision import Recipe, recipes
from models.preprocess import Preprocessor
from models.reference import Reference
from models.runtimes import RuntimeOptions, Session, open_session
from models.tokenizer import Tokenizer

Progress: TypeAlias = Callable[[str, float], None]


@runtime_checkable
class TokenizerSource(Protocol):
    """A tokenizer that is not open_clip's and writes its own ``tokenizer.json``."""

    def write(self, path: Path) -> TextSpec:
        """Write the file and say how its ids are to be used."""
        ...


_Judged: TypeAlias = tuple[Features, TowerParity, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a job found out about the files it wrote."""

    text: TextSpec
    report: ParityReport
    embedding_dim: int
    opset: int


@dataclass(frozen=True, kw_only=True)
class _Tower:
    """An exported tower that passed its gate: its features of the check set, and how they compare."""

    features: Features
    parity: TowerParity
    opset: int
    rung: int
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """One export into ``folder``, by the recipe ``rung`` of the precision's ladder or a later one."""

    model: nn.Module
    image: ImageSpec
    precision: Precision
    calibration: Calibration | None
    folder: Path
    options: RuntimeOptions
    external_data_bytes: int
    tell: Progress
    rung: int = 0

    def run(self, tokenizer: Any, check_images: Path | None) -> Made:
        """Write the files and compare them, as ``export_model`` says, which also tells of the errors."""
        self.tell("writing the tokenizer", 0.0)
        path = self.folder / TOKENIZER
        spec = _write_tokenizer(tokenizer, path)
        self._check_context(spec)
        check = CheckSet.build(size=self.image.size, context_length=spec.context_length, folder=check_images)
        reference = Reference(self.model, self.image)
        tensors = reference.preprocess(check.pictures)
        pixels = self._pixels(check.pictures, tensors.numpy())
        self.tell("encoding texts with open_clip", 0.05)
        tokens = _token_ids(tokenizer, Tokenizer(path, spec), check.texts)
        texts = reference.encode_texts(tokens)
        self.tell("encoding pictures with open_clip", 0.08)
        images = reference.encode_images(tensors)
        classes = np.unique(tokens, axis=0, return_index=True)[1]
        job = self
        while True:
            text_spec, text = job._text_tower(spec, check.texts, texts)
            image = job._image_tower(pixels, images)
            report = _compared((images, texts), image, text, classes)
            refusals = parity.GATES[self.precision].refusals(report)
            if not refusals:
                return Made(text=text_spec, report=report, embedding_dim=images.shape[1], opset=image.opset)
            job = replace(job, rung=max(text.rung, image.rung) + 1)
            if job.rung == len(recipes(self.precision, None if self.calibration is None else ())):
                raise ExportError(
                    f"the {self.precision} export is not what open_clip gives: {'; '.join(refusals)}"
                )

    def _check_context(self, spec: TextSpec) -> None:
        """A tokenizer for longer texts than the positional embedding holds would fail when it is served.

        Text towers with relative positions say 0, which is no limit.
        """
        own = getattr(self.model, "context_length", 0)
        if own and spec.context_length > own:
            raise ExportError(
                f"the tokenizer's context_length {spec.context_length} is above the text tower's {own}"
            )

    def _pixels(self, pictures: Sequence[bytes], wanted: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """The check set through the serving side's preprocessing, compared with open_clip's."""
        preprocess = Preprocessor(self.image, max_pixels=1 << 30, exif=False)
        pixels = [preprocess(picture) for picture in pictures]
        mean, std = (np.array(values, np.float32) for values in (self.image.mean, self.image.std))
        for number, (ours, theirs) in enumerate(zip(pixels, wanted, strict=True)):
            scaled = (ours.astype(np.float32) / 255 - mean) / std
            largest = float(np.abs(scaled - theirs.transpose(1, 2, 0)).max())
            if not largest <= 1e-5:
                raise ExportError(
                    f"picture {number} of the check set is preprocessed otherwise than by open_clip"
                    f" (largest difference {largest:.2e} after normalisation)"
                )
        return pixels

    def _image_tower(self, pixels: Sequence[NDArray[np.uint8]], reference: Features) -> _Tower:
        tower = towers.ImageTower(self.model.get_submodule("visual"), self.image)
        example = torch.zeros((2, *pixels[0].shape), dtype=torch.uint8)

        def judge(session: Session) -> _Judged:
            features = parity.encode(session, pixels, np.stack)
            return features, parity.compare("image", reference, features), ()

        samples = None if self.calibration is None else self.calibration.pixels(self.image)
        return self._climb("image", tower, example, judge, samples)

    def _text_tower(
        self, spec: TextSpec, texts: Sequence[str], reference: Features
    ) -> tuple[TextSpec, _Tower]:
        """With a free length where cut sequences prove to have the features of padded ones, else without."""
        tower = towers.text_tower(self.model)
        example = torch.zeros((2, spec.context_length), dtype=torch.int64)

        def exported(spec: TextSpec) -> _Tower:
            def judge(session: Session) -> _Judged:
                return self._judge_texts(session, spec, texts, reference)

            samples = self._sample_texts(spec)
            return self._climb("text", tower, example, judge, samples, dynamic_length=spec.dynamic_length)

        if towers.may_vary_length(self.model):
            dynamic = spec.model_copy(update={"dynamic_length": True})
            try:
                return dynamic, exported(dynamic)
            except ExportError:
                self.tell("the text length cannot vary; exporting it fixed", 0.2)
        return spec, exported(spec)

    def _sample_texts(self, spec: TextSpec) -> Samples | None:
        if self.calibration is None:
            return None
        return self.calibration.tokens(Tokenizer(self.folder / TOKENIZER, spec), spec.context_length)

    def _judge_texts(
        self, session: Session, spec: TextSpec, texts: Sequence[str], reference: Features
    ) -> _Judged:
        """As they are served; a dynamic length also padded to the whole context."""
        served = Tokenizer(self.folder / TOKENIZER, spec)
        ids = [text.ids for text in served(texts)]
        features = parity.encode(session, ids, served.pad)
        verdict = parity.compare("text", reference, features)
        lengths = {max(len(one) for one in ids[part]) for part in parity.batches(len(ids))}
        if spec.dynamic_length:
            whole = Tokenizer(self.folder / TOKENIZER, spec.model_copy(update={"dynamic_length": False}))
            padded = parity.encode(session, [text.ids for text in whole(texts)], whole.pad)
            verdict = parity.worse(verdict, parity.compare("text", reference, padded))
            lengths.add(spec.context_length)
        return features, verdict, tuple(sorted(lengths))

    def _climb(
        self,
        tower: str,
        module: nn.Module,
        example: torch.Tensor,
        judge: Callable[[Session], _Judged],
        samples: Samples | None,
        *,
        dynamic_length: bool = False,
    ) -> _Tower:
        """Export by the first recipe of the precision that passes the gate.

        Raises:
            ExportError: none does; the text has the figures of the last.
        """
        path = self.folder / {"image": IMAGE_GRAPH, "text": TEXT_GRAPH}[tower]
        gate, share = parity.GATES[self.precision], {"text": 0.1, "image": 0.6}[tower]
        refusal = ""
        for rung, recipe in list(enumerate(recipes(self.precision, samples)))[self.rung :]:
            self.tell(f"exporting the {tower} tower ({recipe.description})", share)
            opset = self._write(tower, recipe, module, example, path=path, dynamic_length=dynamic_length)
            self.tell(f"checking the {tower} tower ({recipe.description})", share + 0.15)
            try:
                features, verdict, lengths = self._judged(path, judge)
            except ExportError as error:
                refusal = str(error)
                continue
            if verdict.min_cosine >= gate.cosine:
                return _Tower(features=features, parity=verdict, opset=opset, rung=rung, lengths=lengths)
            refusal = gate.shortfall(tower, verdict)
        raise ExportError(f"the {self.precision} export is not what open_clip gives: {refusal}")

    def _write(
        self,
        tower: str,
        recipe: Recipe,
        module: nn.Module,
        example: torch.Tensor,
        *,
        path: Path,
        dynamic_length: bool,
    ) -> int:
        try:
            opset = towers.write_graph(
                recipe.prepare(module),
                example,
                path,
                input_name={"image": "pixels", "text": "tokens"}[tower],
                dynamic_length=dynamic_length,
                external_data_bytes=self.external_data_bytes,
            )
            recipe.finish(path)
        except OSError:
            raise  # the disk's, which ``staged`` words
        except Exception as error:  # the exporter raises whatever a model's Python code makes it raise
            raise ExportError(f"the {tower} tower cannot be exported: {towers.reason(error)}") from error
        return opset

    def _judged(self, path: Path, judge: Callable[[Session], _Judged]) -> _Judged:
        """As ONNX Runtime runs it; if activations are rounded and OpenVINO is there, as the worse of both."""
        runtimes = [self.options]
        if self.calibration is not None and find_spec("openvino") is not None:
            runtimes.append(replace(self.options, runtime="openvino", precision="fp32"))
        return min((self._run(path, one, judge) for one in runtimes), key=lambda found: found[1].min_cosine)

    def _run(self, path: Path, options: RuntimeOptions, judge: Callable[[Session], _Judged]) -> _Judged:
        try:
            session = open_session(path, options)
        except ManifestError as error:
            raise ExportError(f"{options.runtime} refuses the exported graph: {error}") from error
        try:
            return judge(session)
        finally:
            session.close()


def _write_tokenizer(tokenizer: Any, path: Path) -> TextSpec:
    if isinstance(tokenizer, TokenizerSource):
        return tokenizer.write(path)
    from models.tokenizer_files import write_tokenizer

    return write_tokenizer(tokenizer, path)


def _token_ids(tokenizer: Any, served: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """The original tokenizer's ids, int64 (N, context_length), which the served ones must equal."""
    ours = served.pad([text.ids for text in served(texts)])
    if isinstance(tokenizer, TokenizerSource):
        return ours  # the file is all there is to say about such a tokenizer
    theirs: NDArray[np.int64] = tokenizer(list(texts)).numpy()
    for text, one, other in zip(texts, ours, theirs, strict=True):
        if not np.array_equal(one, other):
            raise ExportError(f"tokenizer.json gives other ids than open_clip's tokenizer for {text[:40]!r}")
    return theirs


def _compared(
    reference: tuple[Features, Features], image: _Tower, text: _Tower, classes: NDArray[np.int64]
) -> ParityReport:
    return ParityReport(
        reference=f"open_clip {version('open_clip_torch')}",
        batches=parity.BATCHES,
        text_lengths=text.lengths,
        image=image.parity,
        text=text.parity,
        top1_agreement=parity.top1_agreement(reference, (image.features, text.features), classes),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    exporters = ("torch", "open_clip_torch", "timm", "transformers", "onnx", "onnxscript", "nncf")
    found = {}
    for package in (*exporters, "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found

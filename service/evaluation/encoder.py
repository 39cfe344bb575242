"""What an evaluation asks of a model, wherever it runs, and the one that runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.manifest import ScoringSpec
from models.registry import LoadedModel
from prompts.templates import TemplateSet
from service.bulk.picture import file_picture
from service.bulk.pipeline import Pipeline
from service.class_builder import split

Features = NDArray[np.float32]
Outcome = Features | str


class Encoder(Protocol):
    """A model and the template sets known beside it."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def digest(self) -> str:
        """What tells the model from every other one."""
        ...

    @property
    def scoring(self) -> ScoringSpec:
        """How cosines become scores."""
        ...

    @property
    def template_sets(self) -> Sequence[TemplateSet]:
        """The template sets to choose from."""
        ...

    @property
    def default_template_set(self) -> str:
        """The set that is taken where none is named."""
        ...

    def pictures(self, paths: Sequence[Path]) -> Iterator[Outcome]:
        """One outcome a file, in order: its features (D,), or in words why it has none."""
        ...

    def texts(self, texts: Sequence[str]) -> Iterator[Features]:
        """The features (D,) of each text, in order."""
        ...


class LocalEncoder:
    """Runs a model in this process; ``pipeline`` keeps the limits on pictures that a server would keep."""

    def __init__(
        self,
        model: LoadedModel,
        pipeline: Pipeline,
        *,
        template_sets: Sequence[TemplateSet],
        default_template_set: str,
        batch: int = 32,
    ) -> None:
        self._model = model
        self._pipeline = pipeline
        self._batch = batch
        self.name = model.name
        self.digest = model.manifest.digest
        self.scoring = model.manifest.scoring
        self.template_sets = template_sets
        self.default_template_set = default_template_set

    def pictures(self, paths: Sequence[Path]) -> Iterator[Outcome]:
        """As ``Encoder.pictures``."""
        for one in self._pipeline.encode(map(file_picture, paths)):
            yield one.error if one.features is None else one.features

    def texts(self, texts: Sequence[str]) -> Iterator[Features]:
        """As ``Encoder.texts``."""
        for some in split(texts, self._batch):
            yield from self._model.encode_texts(some)

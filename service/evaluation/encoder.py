"""What an evaluation asks of a model, wherever it runs, and the one that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.cores import available_cores
from models.errors import ImageError
from models.manifest import ScoringSpec
from models.registry import LoadedModel
from prompts.templates import TemplateSet
from service.class_builder import split

Features = NDArray[np.float32]
Outcome = Features | str
Batch = TypeVar("Batch")
Done = TypeVar("Done")


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
    """Runs a model in this process: the next batch is decoded while one is encoded."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        template_sets: Sequence[TemplateSet],
        default_template_set: str,
        batch: int = 32,
        threads: int = 0,
    ) -> None:
        self._model = model
        self._batch = batch
        self._threads = threads or available_cores()
        self.name = model.name
        self.digest = model.manifest.digest
        self.scoring = model.manifest.scoring
        self.template_sets = template_sets
        self.default_template_set = default_template_set

    def pictures(self, paths: Sequence[Path]) -> Iterator[Outcome]:
        """As ``Encoder.pictures``."""
        with ThreadPoolExecutor(self._threads) as threads:
            decode = partial(threads.map, self._decode)
            for decoded in one_ahead(decode, split(paths, self._batch)):
                yield from self._encode(list(decoded))

    def texts(self, texts: Sequence[str]) -> Iterator[Features]:
        """As ``Encoder.texts``."""
        for some in split(texts, self._batch):
            yield from self._model.encode_texts(some)

    def _decode(self, path: Path) -> NDArray[np.uint8] | str:
        try:
            return self._model.preprocess(path.read_bytes())
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def _encode(self, decoded: Sequence[NDArray[np.uint8] | str]) -> Iterator[Outcome]:
        good = [pixels for pixels in decoded if not isinstance(pixels, str)]
        features = iter(self._model.encode_pixels(good) if good else ())
        return (one if isinstance(one, str) else next(features) for one in decoded)


def one_ahead(begin: Callable[[Batch], Done], batches: Iterable[Batch]) -> Iterator[Done]:
    """What ``begin`` makes of each batch, handed out only once the next batch has been begun too."""
    begun = (begin(batch) for batch in batches)
    for first in begun:
        current = first
        for following in begun:
            yield current
            current = following
        yield current

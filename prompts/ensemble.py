"""The prompt ensemble: many prompts a class, one embedding a class.

CLIP (Radford et al. 2021, section 3.1.4) averages the prompts of a class in embedding space; the
arithmetic here is that of ``open_clip.build_zero_shot_classifier``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from prompts.errors import EmbeddingError
from prompts.labels import Label, prompts_for
from prompts.templates import TemplateSet

__all__ = [
    "Label",
    "PromptPlan",
    "build_class_embeddings",
    "class_embeddings",
    "normalise",
    "prompts_for",
]

EncodeTexts = Callable[[Sequence[str]], NDArray[np.float32]]
Progress = Callable[[int, int], None]


def normalise(features: NDArray[np.float32], *, field: str = "features") -> NDArray[np.float32]:
    """Scale each row of float32 (N, D) to length one; ``field`` is what errors call the rows.

    Raises:
        EmbeddingError: a row has no direction: its length is zero or not finite.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    usable = np.isfinite(lengths) & (lengths > 0)
    if not usable.all():
        row = int(np.argmin(usable))
        raise EmbeddingError(f"{field}[{row}]: cannot be normalised, its length is {lengths[row]}")
    unit: NDArray[np.float32] = features / lengths[:, np.newaxis]
    return unit


def class_embeddings(features: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
    """Average prompts into classes: normalise each prompt, take the mean a class, normalise again.

    ``features``, float32 (P, D), holds the prompts of the first class, then those of the second, and so
    on; ``counts`` says how many each has, at least one and P in all. The result is float32 (C, D).

    Raises:
        EmbeddingError: the counts do not fit, or a prompt or a mean has no direction.
    """
    sizes = np.asarray(counts, dtype=np.intp)
    if features.ndim != 2 or sizes.ndim != 1 or not sizes.size or sizes.min() < 1:
        raise EmbeddingError("features must be (P, D), and every class needs at least one prompt")
    if sizes.sum() != len(features):
        raise EmbeddingError(f"features: {len(features)} rows for {sizes.sum()} prompts")
    of_classes = np.split(normalise(features), np.cumsum(sizes)[:-1])
    # A sum has the direction of the mean. A sum a class is thirty times faster than np.add.reduceat.
    return normalise(np.stack([unit.sum(axis=0) for unit in of_classes]), field="classes")


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptPlan:
    """What to encode for a list of labels, and how to put the results together.

    ``texts`` are the distinct prompts. Prompt i of the list, class by class, is ``texts[positions[i]]``;
    class c has ``counts[c]`` of them.
    """

    texts: tuple[str, ...]
    positions: NDArray[np.intp]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[Label], template_set: TemplateSet) -> PromptPlan:
        """Plan a list of labels, each with its own prompts or with those of the template set."""
        prompts = [prompts_for(label, template_set) for label in labels]
        place: dict[str, int] = {}
        positions = [place.setdefault(prompt, len(place)) for prompt in chain.from_iterable(prompts)]
        return cls(
            texts=tuple(place),
            positions=np.asarray(positions, dtype=np.intp),
            counts=tuple(len(of_label) for of_label in prompts),
        )

    def embed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class embeddings, float32 (C, D), from the features of ``texts``, float32 (len(texts), D).

        Raises:
            EmbeddingError: there is not one row a text, or a row has no direction.
        """
        if features.ndim != 2 or len(features) != len(self.texts):
            raise EmbeddingError(f"features: shape {features.shape} for {len(self.texts)} texts")
        distinct = len(self.texts) == len(self.positions)
        return class_embeddings(features if distinct else features[self.positions], self.counts)


def build_class_embeddings(
    labels: Sequence[Label],
    template_set: TemplateSet,
    encode_texts: EncodeTexts,
    *,
    batch: int = 256,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Encode the prompts of all labels, each distinct one once, and average them: float32 (C, D).

    ``encode_texts`` is called with at most ``batch`` texts and returns float32 (N, D);
    ``progress(done, total)`` hears of every finished batch, counted in distinct prompts.

    Raises:
        EmbeddingError: there are no labels, or what was encoded has the wrong shape or no direction.
    """
    plan = PromptPlan.of(labels, template_set)
    if not plan.texts:
        raise EmbeddingError("labels: there is nothing to encode")
    encoded = []
    for start in range(0, len(plan.texts), batch):
        texts = plan.texts[start : start + batch]
        encoded.append(encode_texts(texts))
        if progress is not None:
            progress(start + len(texts), len(plan.texts))
    return plan.embed(np.concatenate(encoded))

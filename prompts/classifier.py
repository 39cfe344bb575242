"""The zero-shot classifier: class embeddings in, image features in, scores out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prompts.errors import EmbeddingError, PromptError

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Every class for every picture, in the order of the labels; both float32 (N, C).

    ``similarity`` is the cosine, ``scores`` the probabilities made of it.
    """

    similarity: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The best ``k`` classes of every picture, best first: places in the labels, cosines, scores.

    ``indices`` is intp (N, k), the others are float32 (N, k).
    """

    indices: NDArray[np.intp]
    similarity: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotClassifier:
    """Labels and their class embeddings; ``matrix`` is float32 (C, D) with rows of length one.

    ``scores = activation(logit_scale · features @ matrixᵀ + logit_bias)``: softmax as CLIP was trained
    (Radford et al. 2021, figure 3), sigmoid as SigLIP was (Zhai et al. 2023, algorithm 1).

    Raises:
        EmbeddingError: the matrix is not float32 with one row a label.
        PromptError: the logit scale is not positive.
    """

    labels: tuple[str, ...]
    matrix: NDArray[np.float32]
    logit_scale: float
    logit_bias: float = 0.0
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.labels) or not self.labels:
            raise EmbeddingError(f"matrix: shape {self.matrix.shape} for {len(self.labels)} labels")
        if self.matrix.dtype != np.float32:
            raise EmbeddingError(f"matrix: must be float32, not {self.matrix.dtype}")
        if self.logit_scale <= 0:
            raise PromptError(f"logit_scale: must be above 0, not {self.logit_scale}")
        if self.activation not in _ACTIVATIONS:
            raise PromptError(f"activation: must be softmax or sigmoid, not {self.activation!r}")

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Score pictures, given as float32 (N, D) with rows of length one.

        Raises:
            EmbeddingError: the features have another width than the matrix, or are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.matrix.shape[1]:
            raise EmbeddingError(f"features: shape {features.shape}, must be (N, {self.matrix.shape[1]})")
        similarity = features @ self.matrix.T
        if not np.isfinite(similarity).all():
            raise EmbeddingError("features: contain values that are not finite")
        logits = np.float32(self.logit_scale) * similarity + np.float32(self.logit_bias)
        return Scores(similarity=similarity, scores=_ACTIVATIONS[self.activation](logits))

    def top(self, features: NDArray[np.float32], k: int | None = None) -> Predictions:
        """Score pictures, (N, D) as in ``score``, and keep the best ``k`` classes of each, or all.

        Classes of equal similarity keep the order of the labels. A ``k`` above C means C.

        Raises:
            EmbeddingError: as ``score``.
            PromptError: ``k`` is below 1.
        """
        if k is not None and k < 1:
            raise PromptError(f"top_k: must be at least 1, not {k}")
        scored = self.score(features)
        indices = best_first(scored.similarity, k)
        return Predictions(
            indices=indices,
            similarity=np.take_along_axis(scored.similarity, indices, axis=1),
            scores=np.take_along_axis(scored.scores, indices, axis=1),
        )


def best_first(similarity: NDArray[np.float32], k: int | None = None) -> NDArray[np.intp]:
    """Columns of the ``k`` largest values of each row, float32 (N, C) → intp (N, min(k, C)), equals in order.

    Cosines are ranked rather than scores: scores that round to 0 or 1 would tie where cosines do not.
    """
    rows, columns = similarity.shape
    k = columns if k is None else min(k, columns)
    if 4 * k >= columns:
        return np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    # argpartition may split a tie at the border anyhow, so only the border's value is taken from it.
    border = np.partition(similarity, columns - k, axis=1)[:, columns - k]
    best = np.empty((rows, k), dtype=np.intp)
    for row in range(rows):
        candidates = np.flatnonzero(similarity[row] >= border[row])
        order = np.argsort(-similarity[row, candidates], kind="stable")
        best[row] = candidates[order[:k]]
    return best


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis; the largest logit is taken off first, so nothing overflows."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function; only ``exp(-|x|)`` is taken, so nothing overflows and small values stay exact."""
    decay = np.exp(-np.abs(logits))
    probabilities: NDArray[np.float32] = np.where(logits >= 0, np.float32(1), decay) / (1 + decay)
    return probabilities


_ACTIVATIONS = {"softmax": softmax, "sigmoid": sigmoid}

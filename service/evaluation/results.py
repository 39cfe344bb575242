"""What an evaluation finds. These classes are the JSON that ``clipserve eval`` writes, field by field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class BadPicture:
    """A picture that could not be encoded, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class under one template set; no figures where it has no pictures."""

    label: str
    pictures: int
    top1: Estimate | None
    top5: Estimate | None


@dataclass(frozen=True, kw_only=True)
class TemplateResult:
    """One template: its top-1 ``alone``, and its ``worth``, which the ensemble loses without it.

    The only template of a set has no worth of its own.
    """

    template: str
    alone: Estimate
    worth: Estimate | None


@dataclass(frozen=True, kw_only=True)
class ConfusedPicture:
    """A picture that was taken for something else, with the scores of its label and of the answer."""

    path: str
    label: str
    answer: str
    label_score: float
    answer_score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SetResult:
    """One template set on all pictures.

    ``mean_per_class`` is top-1 averaged over classes; ``gain`` is top-1 minus that of the first set. Row i of
    ``confusion``, intp (C, C), counts what pictures of class i were taken for. ``most_confused`` begins
    with the picture whose wrong answer is furthest above its label.
    """

    name: str
    top1: Estimate
    top5: Estimate
    mean_per_class: Estimate
    gain: Estimate
    templates: tuple[TemplateResult, ...]
    classes: tuple[ClassResult, ...]
    confusion: NDArray[np.intp]
    most_confused: tuple[ConfusedPicture, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Everything found; ``best`` names the template set with the highest top-1."""

    model: str
    model_digest: str
    folder: str
    pictures: int
    labels: tuple[str, ...]
    best: str
    template_sets: tuple[SetResult, ...]
    bad_pictures: tuple[BadPicture, ...]

    @property
    def best_set(self) -> SetResult:
        """The result that ``best`` names."""
        return next(one for one in self.template_sets if one.name == self.best)

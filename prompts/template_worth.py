"""One ensemble taken apart: each of its templates alone, and the ensemble without it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prompts.ensemble import PromptPlan, normalise
from prompts.errors import EmbeddingError


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplateFeatures:
    """The prompts of C classes under T templates: ``unit`` is float32 (C, T, D), rows of length one."""

    unit: NDArray[np.float32]

    @classmethod
    def of(cls, plan: PromptPlan, features: NDArray[np.float32]) -> TemplateFeatures:
        """From the features of ``plan.texts``, float32 (len(texts), D).

        Raises:
            EmbeddingError: classes differ in their number of prompts, or a row has no direction.
        """
        if len(set(plan.counts)) != 1:
            raise EmbeddingError("labels: with prompts of their own there are no templates to compare")
        rows = normalise(features)[plan.positions]
        return cls(unit=rows.reshape(len(plan.counts), plan.counts[0], -1))

    @property
    def count(self) -> int:
        """T, the number of templates."""
        return int(self.unit.shape[1])

    def alone(self, template: int) -> NDArray[np.float32]:
        """Class embeddings, float32 (C, D), of one template and no other."""
        return self.unit[:, template]

    def without(self, template: int) -> NDArray[np.float32]:
        """Class embeddings, float32 (C, D), of the ensemble that lacks one template.

        Raises:
            EmbeddingError: no template is left.
        """
        if self.count == 1:
            raise EmbeddingError("templates: the only one cannot be left out")
        return normalise(self._total - self.unit[:, template], field="classes")

    @cached_property
    def _total(self) -> NDArray[np.float32]:
        """Over templates, (C, D): summing the others anew for each template would take T times as long."""
        return np.asarray(self.unit.sum(axis=1), np.float32)

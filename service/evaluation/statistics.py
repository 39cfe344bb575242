"""Shares of right answers, and how far chance may have moved them: the percentile bootstrap.

Efron 1979; intervals are those of 95 %. Resampling N answers of which R are right gives a number of right
ones that is binomial, so it is drawn at once rather than picture by picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_INTERVAL = (2.5, 97.5)

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A figure and the 95 % interval around it; shares are in 0..1."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Draws resamples, the same ones for the same seed."""

    def __init__(self, *, resamples: int = 10_000, seed: int = 0) -> None:
        self._resamples = resamples
        self._random = np.random.default_rng(seed)

    def share(self, right: Flags) -> Estimate:
        """The share of right answers among ``right``, bool (N,)."""
        value = float(right.mean())
        return _estimate(value, self._shares(len(right), value))

    def shares(self, right: Flags, truth: NDArray[np.intp], classes: int) -> list[Estimate | None]:
        """The share of right answers a class, and None for a class without pictures; both (N,)."""
        return [
            self.share(of_class) if (of_class := right[truth == place]).size else None
            for place in range(classes)
        ]

    def mean_of_shares(self, right: Flags, truth: NDArray[np.intp]) -> Estimate:
        """The mean over classes of their shares: rare classes count as much as frequent ones.

        Pictures are drawn anew within each class, so every resample has them all.
        """
        values = [float(right[truth == place].mean()) for place in np.unique(truth)]
        drawn = np.zeros(self._resamples)
        for place, value in zip(np.unique(truth), values, strict=True):
            drawn += self._shares(int((truth == place).sum()), value)
        return _estimate(float(np.mean(values)), drawn / len(values))

    def difference(self, right: Flags, other: Flags) -> Estimate:
        """Share of ``right`` minus share of ``other``, on the same N pictures.

        Paired: what both answer alike cancels out, so small differences show in few pictures.
        """
        gained, lost = int((right & ~other).sum()), int((~right & other).sum())
        shares = np.array([gained, lost, len(right) - gained - lost]) / len(right)
        drawn = self._random.multinomial(len(right), shares, self._resamples)
        return _estimate((gained - lost) / len(right), (drawn[:, 0] - drawn[:, 1]) / len(right))

    def _shares(self, count: int, value: float) -> NDArray[np.float64]:
        return self._random.binomial(count, value, self._resamples) / count


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(drawn, _INTERVAL)
    return Estimate(value=value, low=float(low), high=float(high))

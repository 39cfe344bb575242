"""How far exported towers are from the original, and the gates that keep a bad export out of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ExportError
from models.manifest import ParityReport, Precision, TowerParity
from models.runtimes import Session

BATCHES = (1, 2, 7)
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Gate:
    """The least an export must reach: the smallest cosine of any item, and the share of equal top-1."""

    cosine: float
    top1: float

    def refusals(self, report: ParityReport) -> list[str]:
        """What falls short, in figures; empty where everything passes. There is no margin for near ties."""
        towers = (("image", report.image), ("text", report.text))
        found = [self.shortfall(name, tower) for name, tower in towers if not tower.min_cosine >= self.cosine]
        if not report.top1_agreement >= self.top1:
            found.append(f"top-1 agreement {report.top1_agreement:.2%} is below {self.top1:.0%}")
        return found

    def shortfall(self, tower: str, found: TowerParity) -> str:
        """One tower's figures beside the gate they miss."""
        return (
            f"smallest {tower} cosine {found.min_cosine:.7f} is below {self.cosine}"
            f" (largest difference {found.max_difference:.2e})"
        )


GATES: dict[Precision, Gate] = {
    "fp32": Gate(cosine=0.99999, top1=1.0),
    "fp16": Gate(cosine=0.999, top1=0.97),
    "int8": Gate(cosine=0.97, top1=0.97),
}


def batches(count: int, sizes: Sequence[int] = BATCHES) -> Iterator[slice]:
    """Cut ``count`` items into batches of 1, 2, 7, 1, 2, 7, … items; the last may be shorter."""
    start = number = 0
    while start < count:
        stop = min(count, start + sizes[number % len(sizes)])
        yield slice(start, stop)
        start, number = stop, number + 1


def encode(
    session: Session, items: Sequence[NDArray[Any]], join: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]
) -> Features:
    """Run ``items`` through ``session`` in batches of 1, 2 and 7, each made by ``join``; (N, D)."""
    return np.concatenate([session.run(join(items[part])) for part in batches(len(items))])


def compare(tower: str, reference: Features, exported: Features) -> TowerParity:
    """Compare features (N, D) row by row.

    Raises:
        ExportError: the shapes differ, or the exported rows are not finite or not of length one.
    """
    if exported.shape != reference.shape:
        raise ExportError(
            f"the {tower} graph gives features {exported.shape}, the original {reference.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(exported).all(axis=1))
    if broken.size:
        raise ExportError(
            f"the {tower} graph gives non-finite features for {broken.size} items of the check set"
        )
    norms = np.linalg.norm(exported.astype(np.float64), axis=1)
    if np.abs(norms - 1).max() > 1e-3:
        raise ExportError(f"the {tower} graph's features have a length of {norms.max():.4f}, not 1")
    cosines = (_unit(reference) * _unit(exported)).sum(axis=1)
    return TowerParity(
        items=len(reference),
        min_cosine=float(cosines.min()),
        max_difference=float(np.abs(reference - exported).max()),
        reference_similarity=_mean_similarity(reference),
    )


def worse(one: TowerParity, other: TowerParity) -> TowerParity:
    """Both comparisons of a tower as one."""
    return TowerParity(
        items=one.items + other.items,
        min_cosine=min(one.min_cosine, other.min_cosine),
        max_difference=max(one.max_difference, other.max_difference),
        reference_similarity=one.reference_similarity,
    )


def top1_agreement(
    reference: tuple[Features, Features], exported: tuple[Features, Features], classes: NDArray[np.intp]
) -> float:
    """The share of pictures whose nearest text is the same; each pair is (pictures (N, D), texts (M, D)).

    ``classes`` picks the texts that count as classes: one of each set of texts with the same tokens,
    which would tie whatever the graph does.
    """
    wanted, found = ((images @ texts[classes].T).argmax(axis=1) for images, texts in (reference, exported))
    return float((wanted == found).mean())


def _unit(rows: Features) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def _mean_similarity(rows: Features) -> float:
    """Mean cosine between different rows, through |Σx|² = N + Σ over pairs."""
    count = len(rows)
    if count < 2:
        return 1.0
    total = float((_unit(rows).sum(axis=0) ** 2).sum())
    return (total - count) / (count * (count - 1))

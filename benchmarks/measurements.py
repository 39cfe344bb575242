"""Figures by subject, measure and concurrency, one value a repeat; medians and spread at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, order=True)
class Key:
    """Who was measured, at what, and with how many at a time (clients, or items in a batch)."""

    subject: str
    measure: str
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and greatest over the repeats."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise the values of all repeats."""
        ordered = sorted(values)
        return cls(median=median(ordered), least=ordered[0], greatest=ordered[-1])

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.least:{spec}} to {self.greatest:{spec}})"


@dataclass
class Measurements:
    """Everything one run found out."""

    samples: dict[Key, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Keep the figures of one repeat."""
        kept = self.samples.setdefault(key, {})
        for name, value in figures.items():
            kept.setdefault(name, []).append(value)

    def spread(self, key: Key, figure: str) -> Spread:
        """Median and spread of one figure."""
        return Spread.of(self.samples[key][figure])

    def repeats(self, key: Key, figure: str) -> list[float]:
        """One value a repeat, in their order, so that ratios are taken within a repeat."""
        return self.samples[key][figure]

    def of_subject(self, subject: str) -> Iterator[Key]:
        """The keys of one subject in the order they were measured."""
        return (key for key in self.samples if key.subject == subject)

    def as_json(self) -> list[dict[str, Any]]:
        """One object a key, every sample included."""
        return [
            {"subject": key.subject, "measure": key.measure, "width": key.width, "figures": figures}
            for key, figures in self.samples.items()
        ]

"""The report: one HTML page with its plots and pictures inside, which asks nobody for anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from service.evaluation.results import ClassResult, Evaluation, SetResult, TemplateResult
from service.evaluation.statistics import Estimate

_WIDTH = 240.0
_MARGIN = 14.0
_LARGEST_MAP = 32
_MOST_PAIRS = 15


@dataclass(frozen=True)
class Axis:
    """A scale of shares, drawn ``_WIDTH`` units wide."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, estimates: Iterable[Estimate]) -> Axis:
        """The narrowest axis of round numbers that shows these intervals, and zero if any goes below it."""
        shown = list(estimates)
        low, high = min(one.low for one in shown), max(one.high for one in shown)
        if low < 0 or high < 0:
            low, high = min(low, 0.0), max(high, 0.0)
        step = next(one for one in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if high - low <= 4 * one)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if first == last:  # all the same, such as every answer right
            first, last = (first - 1, last) if last > 0 else (first, last + 1)
        return cls(first * step, last * step, step)

    @property
    def width(self) -> float:
        """Of the drawing, margins included."""
        return _WIDTH

    @property
    def ticks(self) -> list[float]:
        """Where a line is drawn, in shares."""
        return np.arange(self.low, self.high + self.step / 2, self.step).tolist()

    def x(self, share: float) -> float:
        """Where a share lies, in units of the drawing."""
        place = (share - self.low) / (self.high - self.low)
        return round(_MARGIN + place * (_WIDTH - 2 * _MARGIN), 2)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the heat map: so many of the ``total`` pictures of ``label`` were called ``answer``."""

    row: int
    column: int
    label: str
    answer: str
    count: int
    total: int

    @property
    def is_right(self) -> bool:
        """Whether it lies on the diagonal."""
        return self.row == self.column

    @property
    def strength(self) -> float:
        """How strongly it is filled, 0..1. The square root, so that rare errors are seen at all."""
        return round(math.sqrt(self.count / self.total), 3)


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The confusion matrix, or the part of it with the most errors; empty cells are left out."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, labels: tuple[str, ...], confusion: NDArray[np.intp]) -> HeatMap:
        """The classes that are most often wrong, or wrongly answered, in the order of the labels."""
        wrong = _errors(confusion)
        worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_LARGEST_MAP]
        kept = np.sort(worst)
        counts = confusion[np.ix_(kept, kept)]
        names, totals = [labels[place] for place in kept], confusion.sum(axis=1)[kept]
        cells = [
            Cell(
                row=row,
                column=column,
                label=names[row],
                answer=names[column],
                count=int(counts[row, column]),
                total=int(totals[row]),
            )
            for row, column in np.argwhere(counts).tolist()
        ]
        return cls(labels=tuple(names), cells=tuple(cells))


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """What was taken for what, and how often."""

    label: str
    answer: str
    count: int
    total: int


def render(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The page; ``pictures`` has the data URIs of most confused pictures by their paths."""
    environment = Environment(
        loader=PackageLoader("service.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "points": _points, "verdict": _verdict}
    best = evaluation.best_set
    return environment.get_template("report.html").render(
        evaluation=evaluation,
        best=best,
        pictures=pictures,
        has_top5=len(evaluation.labels) > 5,
        sets_axis=Axis.around(_shares_of_sets(evaluation)),
        classes=_worst_first(best),
        classes_axis=Axis.around(one.top1 for one in best.classes if one.top1 is not None),
        usual_answer=_usual_answers(evaluation.labels, best.confusion),
        heat_map=HeatMap.of(evaluation.labels, best.confusion),
        mistakes=_mistakes(evaluation.labels, best.confusion),
        ensembles=[_Ensemble.of(one) for one in _best_first(evaluation) if len(one.templates) > 1],
    )


@dataclass(frozen=True, kw_only=True)
class _Ensemble:
    """A set of several templates, the most worth first, with the axes for both of its columns."""

    name: str
    templates: tuple[TemplateResult, ...]
    alone_axis: Axis
    worth_axis: Axis

    @classmethod
    def of(cls, result: SetResult) -> _Ensemble:
        ranked = sorted(result.templates, key=lambda one: (-_worth(one).value, -one.alone.value))
        return cls(
            name=result.name,
            templates=tuple(ranked),
            alone_axis=Axis.around(one.alone for one in ranked),
            worth_axis=Axis.around([*map(_worth, ranked), Estimate(-0.001, -0.001, 0.001)]),
        )


def _worth(one: TemplateResult) -> Estimate:
    assert one.worth is not None  # of a set of several
    return one.worth


def _shares_of_sets(evaluation: Evaluation) -> list[Estimate]:
    return [one.top1 for one in evaluation.template_sets]


def _best_first(evaluation: Evaluation) -> list[SetResult]:
    return sorted(evaluation.template_sets, key=lambda one: -one.top1.value)


def _worst_first(result: SetResult) -> list[ClassResult]:
    def share(one: ClassResult) -> float:
        return 2.0 if one.top1 is None else one.top1.value

    return sorted(result.classes, key=share)


def _errors(confusion: NDArray[np.intp]) -> NDArray[np.intp]:
    return confusion - np.diag(np.diag(confusion))


def _usual_answers(labels: tuple[str, ...], confusion: NDArray[np.intp]) -> dict[str, Mistake]:
    """By label, the wrong answer it most often gets; labels that are never wrong are left out."""
    wrong, totals = _errors(confusion), confusion.sum(axis=1)
    return {
        labels[row]: Mistake(
            label=labels[row], answer=labels[column], count=int(wrong[row, column]), total=int(totals[row])
        )
        for row, column in enumerate(wrong.argmax(axis=1).tolist())
        if wrong[row, column]
    }


def _mistakes(labels: tuple[str, ...], confusion: NDArray[np.intp]) -> list[Mistake]:
    """The most frequent ones."""
    wrong, totals = _errors(confusion), confusion.sum(axis=1)
    pairs = sorted(np.argwhere(wrong).tolist(), key=lambda pair: (-wrong[tuple(pair)], pair))[:_MOST_PAIRS]
    return [
        Mistake(
            label=labels[row], answer=labels[column], count=int(wrong[row, column]), total=int(totals[row])
        )
        for row, column in pairs
    ]


def _number(share: float) -> str:
    return f"{100 * share:.1f}"


def _percent(share: float) -> str:
    return f"{_number(share)}\u202f%"


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    points = f"{100 * share:+.2f}"
    return "0" if float(points) == 0 else points.replace("-", "\u2212")


def _verdict(worth: Estimate) -> str:
    """What an interval allows to say."""
    return "helps" if worth.low > 0 else "harms" if worth.high < 0 else "unclear"

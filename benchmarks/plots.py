"""How costs grow: throughput and latency against clients, labels and picture size, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import plan
from benchmarks.measurements import Key, Measurements
from benchmarks.subjects import MODEL

Series = list[tuple[float, Key]]


def draw(found: Measurements, subject: str, folder: Path) -> list[Path]:
    """Write the plots that ``found`` has the figures for; returns their paths."""
    mpl.use("Agg")
    clients = [(float(key.width), key) for key in found.of_subject(subject) if key.measure == plan.RAW]
    labels = {
        width: [(float(count), Key(subject, plan.classify_named(count), width)) for count in plan.LABELS]
        for width in (1, 64)
    }
    sizes = {
        width: [(w * h / 1e6, Key(subject, plan.embed_size(w, h), width)) for w, h in plan.SIZES]
        for width in (1, 64)
    }
    wanted = {
        "clients": ({plan.RAW: sorted(clients)}, "clients"),
        "labels": (_by_clients(labels), "labels of the classifier"),
        "picture-size": (_by_clients(sizes), "megapixels"),
    }
    written = []
    for name, (curves, axis) in wanted.items():
        measured = {
            title: [one for one in curve if one[1] in found.samples] for title, curve in curves.items()
        }
        if all(len(curve) > 1 for curve in measured.values()):
            path = folder / f"{name}.png"
            _plot(found, measured, axis, f"clipserve, {MODEL}, {subject}: growth with {axis}", path)
            written.append(path)
    return written


def _by_clients(curves: dict[int, Series]) -> dict[str, Series]:
    return {f"{width} client{'s' if width > 1 else ''}": curve for width, curve in curves.items()}


def _plot(found: Measurements, curves: dict[str, Series], axis: str, title: str, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    rate, latency = figure.subplots(1, 2)
    for name, curve in curves.items():
        _curve(rate, found, curve, "rate", name)
        for figure_name, style in (("p50_ms", "o-"), ("p99_ms", "s--")):
            _curve(latency, found, curve, figure_name, f"{name}, {figure_name[:3]}", style)
    for axes, unit in ((rate, "pictures a second"), (latency, "milliseconds")):
        axes.set(xlabel=axis, ylabel=unit, xscale="log", yscale="log" if axes is latency else "linear")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    rate.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _curve(
    axes: Axes,
    found: Measurements,
    curve: Sequence[tuple[float, Key]],
    figure: str,
    label: str,
    style: str = "o-",
) -> None:
    """Medians with whiskers from the least to the greatest."""
    spreads = [found.spread(key, figure) for _, key in curve]
    medians = [spread.median for spread in spreads]
    below = [spread.median - spread.least for spread in spreads]
    above = [spread.greatest - spread.median for spread in spreads]
    axes.errorbar([x for x, _ in curve], medians, yerr=(below, above), fmt=style, capsize=2, label=label)

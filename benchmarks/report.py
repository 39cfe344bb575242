"""Measurements as tables and ratios: Markdown for the repository, rich for the terminal, JSON for both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import plan
from benchmarks.in_process import BATCH, BOTH, DECODE, DECODING, ENCODE, OPEN_CLIP
from benchmarks.in_turn import IN_TURN
from benchmarks.measurements import Key, Measurements, Spread

_LIMIT = "decode+encode limit"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A figure the project holds itself to, and what is wanted of it."""

    subject: str
    what: str
    wanted: str
    value: Spread
    unit: str = ""

    @property
    def shown(self) -> str:
        """Median and spread with the unit."""
        return f"{self.value:.2f}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A titled table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(found: Measurements, cores: int) -> list[Sheet]:
    """Every table of the report."""
    judged = [[one.subject, one.what, one.shown, one.wanted] for one in ratios(found, cores)]
    return [
        Sheet(title="Ratios", columns=("configuration", "measure", "found", "wanted"), rows=judged),
        _in_process(found),
        over_http(found),
    ]


def ratios(found: Measurements, cores: int) -> list[Ratio]:
    """Ratios within each repeat, then their medians; those whose parts were not measured are left out."""
    lines: list[Ratio] = []
    for subject in (key.subject for key in found.samples if key.measure == plan.START):
        for make in _RATIOS:
            try:
                lines += make(found, subject, cores)
            except KeyError:
                continue
    return lines


def _against_the_limit(found: Measurements, subject: str, cores: int) -> Iterator[Ratio]:
    """The limit is 1 / (1 / encoder rate + decode seconds / cores), all cores busy and nothing else done."""
    encoder = _encoder_rates(found, subject)
    decode = _values(found, DECODING, DECODE, 1, "rate")
    limit = [1 / (1 / fast + 1 / (one * cores)) for fast, one in zip(encoder, decode, strict=True)]
    yield _line(subject, _LIMIT, "", limit, " pictures/s")
    in_process = _values(found, subject, BOTH, BATCH, "rate")
    yield _line(subject, f"{BOTH} ÷ {_LIMIT}", "", _over(in_process, limit))
    wanted = "≥ 0.80" if subject.endswith("bf16") else "≥ 0.90"
    for measure in (plan.RAW, plan.FORM):
        http = _values(found, subject, measure, 64, "rate")
        yield _line(subject, f"{measure}, 64 clients ÷ {_LIMIT}", wanted, _over(http, limit))
        yield _line(subject, f"{measure}, 64 clients ÷ in process", "", _over(http, in_process))
        yield _line(subject, f"{measure}, 64 clients ÷ encoder alone", "", _over(http, encoder))


def _latency(found: Measurements, subject: str, _: int) -> Iterator[Ratio]:
    yield _line(subject, IN_TURN, "≤ 2 ms", _values(found, subject, IN_TURN, 1, "extra_ms"), " ms")
    for measure in (plan.RAW, plan.FORM):
        crowded = (_values(found, subject, measure, 64, name) for name in ("p99_ms", "p50_ms"))
        yield _line(subject, f"{measure}, p99 ÷ p50 at 64 clients", "≤ 1.5", _over(*crowded))


def _many_labels(found: Measurements, subject: str, _: int) -> Iterator[Ratio]:
    for measure in (plan.classify_form, plan.classify_as_json):
        few, many = (_values(found, subject, measure(count), 64, "rate") for count in (10, 1_000))
        yield _line(subject, f"{measure(10)} ÷ {measure(1_000)}, 64 clients", "≤ 1.05", _over(few, many))
    few, many = (_values(found, subject, plan.classify_named(count), 64, "rate") for count in (10, 1_000))
    yield _line(subject, f"{plan.classify_named(10)} ÷ of 1000, 64 clients", "≤ 1.05", _over(few, many))


def _building(found: Measurements, subject: str, _: int) -> Iterator[Ratio]:
    ours = _values(found, subject, plan.BUILD, 1, "rate")
    theirs = _values(found, OPEN_CLIP, plan.BUILD, 1, "rate")
    yield _line(subject, f"{plan.BUILD} ÷ open_clip's function", "≥ 20", _over(ours, theirs))


def _starting(found: Measurements, subject: str, _: int) -> Iterator[Ratio]:
    yield _line(subject, "start to ready", "≤ 2 s", _values(found, subject, plan.START, 1, "seconds"), " s")


_RATIOS: tuple[Callable[[Measurements, str, int], Iterator[Ratio]], ...] = (
    _against_the_limit,
    _latency,
    _many_labels,
    _building,
    _starting,
)


def _encoder_rates(found: Measurements, subject: str) -> list[float]:
    """The best each repeat gave, whichever the batch, as served or with nothing set."""
    keys = [key for name in (subject, f"bare {subject}") for key in found.of_subject(name)]
    columns = [found.repeats(key, "rate") for key in keys if key.measure == ENCODE]
    return [max(values) for values in zip(*columns, strict=True)]


def _values(found: Measurements, subject: str, measure: str, width: int, figure: str) -> list[float]:
    return found.repeats(Key(subject, measure, width), figure)


def _over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _line(subject: str, what: str, wanted: str, values: Sequence[float], unit: str = "") -> Ratio:
    return Ratio(subject=subject, what=what, wanted=wanted, value=Spread.of(values), unit=unit)


def _in_process(found: Measurements) -> Sheet:
    rows = [
        [
            key.subject,
            key.measure,
            str(key.width),
            f"{found.spread(key, 'rate'):.1f}",
            f"{found.spread(key, 'p50_ms'):.2f}" if "p50_ms" in figures else "",
        ]
        for key, figures in found.samples.items()
        if "rate" in figures and "p99_ms" not in figures
    ]
    columns = ("what runs", "measure", "at once", "items/s", "ms a call")
    return Sheet(title="Without HTTP, and building classifiers", columns=columns, rows=rows)


def over_http(found: Measurements) -> Sheet:
    """Everything measured over HTTP."""
    rows = [
        [
            key.subject,
            key.measure,
            str(key.width),
            f"{found.spread(key, 'rate'):.1f}",
            *(f"{found.spread(key, f'p{percent}_ms'):.1f}" for percent in (50, 95, 99)),
            f"{1000 * found.spread(key, 'cpu_seconds_per_item').median:.1f}",
            f"{1000 * found.spread(key, 'client_cpu_seconds_per_item').median:.2f}",
            f"{found.spread(key, 'resident_mb').median:.0f}",
        ]
        for key, figures in found.samples.items()
        if "p99_ms" in figures
    ]
    columns = (
        *("server", "request", "clients", "items/s", "p50 ms", "p95 ms", "p99 ms"),
        *("CPU ms an item", "client's CPU ms", "resident MB"),
    )
    return Sheet(title="Over HTTP", columns=columns, rows=rows)


def write(
    folder: Path, name: str, found: Measurements, conditions: dict[str, Any], pages: Sequence[Sheet]
) -> None:
    """Write ``name.json`` and ``name.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"conditions": conditions, "measurements": found.as_json()}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_markdown(conditions, pages))


def show(pages: Sequence[Sheet], console: Console) -> None:
    """Print every table."""
    for page in pages:
        table = Table(*page.columns, title=page.title, title_justify="left", header_style="bold", box=None)
        for row in page.rows:
            table.add_row(*row)
        console.print(table)


def _markdown(conditions: dict[str, Any], pages: Sequence[Sheet]) -> str:
    facts = conditions | {
        "versions": ", ".join(f"{name} {number}" for name, number in conditions["versions"].items()),
        "cpu_flags": ", ".join(conditions["cpu_flags"]),
    }
    lines = ["# Measurements", "", "Median (least to greatest) of the repeats, taken in turn in one run.", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    for page in pages:
        lines += ["", f"## {page.title}", "", _row(page.columns), _row(["---"] * len(page.columns))]
        lines += [_row(row) for row in page.rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

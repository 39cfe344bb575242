"""What is measured, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from benchmarks.client import Generator
from benchmarks.over_http import Sweep
from benchmarks.pictures import labels, photo, prompts
from benchmarks.processes import Server
from benchmarks.requests import classify_json, embed_texts, forms, raw

CLIENTS = (1, 8, 32, 64)
WARM_UP_SECONDS = 0.5
LABELS = (10, 100, 1_000, 10_000, 100_000)
SIZES = ((125, 94), (250, 188), (500, 375), (1000, 750), (2000, 1500), (4000, 3000))

RAW = "/embed, raw 500×375"
FORM = "/embed, form 500×375"
SIXTEEN = "/embed, form of 16 × 500×375"
TEXT = "/embed, one text"
START = "start"
BUILD = "build classifier, 80 templates"


def classify_form(count: int) -> str:
    """``/classify`` with its labels in the form."""
    return f"/classify, form, {count} labels"


def classify_as_json(count: int) -> str:
    """``/classify`` with its labels and the picture in JSON."""
    return f"/classify, JSON, {count} labels"


def classify_named(count: int) -> str:
    """``/classify`` against a named classifier."""
    return f"/classify, raw, classifier of {count}"


def embed_size(width: int, height: int) -> str:
    """``/embed`` for the plot against picture size."""
    return f"/embed, raw {width}×{height}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often. ``extended``: all of it, not only what the main ratios need."""

    repeats: int
    seconds: float
    extended: bool
    built_classes: int
    open_clip_classes: int

    @cached_property
    def pictures(self) -> list[bytes]:
        """Requests take these in turn; nothing on the way keeps pictures, so that they may recur."""
        return [photo(500, 375, seed=seed) for seed in range(64)]

    @cached_property
    def texts(self) -> list[str]:
        """More of them than are ever under way at once."""
        return prompts(2_048)

    @property
    def classifier_sizes(self) -> Sequence[int]:
        """Of the named classifiers that are made beforehand."""
        return LABELS if self.extended else ()

    @cached_property
    def sweeps(self) -> list[Sweep]:
        """What every configuration is asked."""
        single = [[one] for one in self.pictures]
        return [
            Sweep(measure=RAW, requests=raw("/embed", self.pictures), widths=CLIENTS),
            Sweep(measure=FORM, requests=forms("/embed", single), widths=CLIENTS),
            Sweep(measure=TEXT, requests=embed_texts(self.texts), widths=(1, 32)),
        ]

    @cached_property
    def further_sweeps(self) -> list[Sweep]:
        """What only the last, and fastest, configuration is asked, for it takes minutes."""
        if not self.extended:
            return []
        sixteens = [self.pictures[first : first + 16] for first in range(0, 64, 16)]
        return [
            Sweep(measure=RAW, requests=raw("/embed", self.pictures), widths=(2, 4, 16, 128, 256)),
            Sweep(measure=SIXTEEN, requests=forms("/embed", sixteens), widths=(1, 8), items=16),
            *self._label_sweeps(),
            *self._size_sweeps(),
        ]

    def warm_up(self, clients: Generator, server: Server) -> None:
        """Put both encoders to work, unmeasured: a server's first seconds are not like the others."""
        pictures, _, texts = self.sweeps
        for sweep in (pictures, texts):
            list(replace(sweep, widths=(8,)).run(clients, server, WARM_UP_SECONDS))

    def _label_sweeps(self) -> Iterator[Sweep]:
        single = [[one] for one in self.pictures]
        for count in (10, 1_000):
            names = labels(count)
            fields = [("labels", name) for name in names] + [("top_k", "5")]
            in_forms = forms("/classify", single, fields)
            in_json = classify_json(self.pictures, names)
            yield Sweep(measure=classify_form(count), requests=in_forms, widths=CLIENTS)
            yield Sweep(measure=classify_as_json(count), requests=in_json, widths=(64,))
        for count in LABELS:
            path = f"/classify?classifier=labels-{count}&top_k=5"
            yield Sweep(measure=classify_named(count), requests=raw(path, self.pictures), widths=(1, 64))

    def _size_sweeps(self) -> Iterator[Sweep]:
        for width, height in SIZES:
            if embed_size(width, height) != RAW:
                some = [photo(width, height, seed=seed) for seed in range(4)]
                requests = raw("/embed", some)
                yield Sweep(measure=embed_size(width, height), requests=requests, widths=(1, 64))


QUICK = Plan(repeats=3, seconds=0.5, extended=False, built_classes=10, open_clip_classes=0)
FULL = Plan(repeats=3, seconds=1.5, extended=True, built_classes=50, open_clip_classes=5)

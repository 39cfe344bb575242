"""Measure the embedded model as it is served, on pictures it was never trained on; no torch needed.

``python -m models.shapes.evaluate`` renders fresh scenes, sends them as files through the model's own
preprocessing, tokenizer and ONNX graphs, and writes the figures into the model card.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.registry import LoadedModel, ModelRegistry
from models.shapes.captions import ENSEMBLE, UNSEEN_TEMPLATES
from models.shapes.pairs import HELD_OUT_PAIRS, PAIRS, TRAINING_PAIRS, Pair
from models.shapes.scenes import COLOURS, SHAPES, SIZES, Scene, as_file, sample_scene

FILES = Path(__file__).parent / "files"
BEGIN, END = "<!-- figures: written by models.shapes.evaluate -->", "<!-- end of figures -->"

# Wording, attribute of the scene, values to choose from.
QUESTIONS = (
    ("a {value} shape", "colour", tuple(COLOURS)),
    ("a {value}", "shape", tuple(SHAPES)),
    ("a {value} {label}", "size", ("small", "large")),
    ("a {label} on the {value}", "horizontal", ("left", "right")),
    ("a {label} on the {value}", "vertical", ("top", "bottom")),
    ("a {label} on a {value} background", "background", ("white", "black", "grey")),
)

# Training draws its seeds elsewhere (see train.Recipe), so no picture is ever both.
_FIRST_SEED = 9_000_000_000
_BATCH = 64

Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How many of a number of pictures got the right label as their first."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share of right answers, 0..1."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % score interval (Wilson 1927), which holds near 100 % too."""
        z, n, p = 1.96, self.total, self.value
        middle = p + z * z / (2 * n)
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - reach) / (1 + z * z / n), min((middle + reach) / (1 + z * z / n), 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Exam:
    """Fresh scenes, which pair each shows (an index into ``PAIRS``), and their image features (N, D)."""

    model: LoadedModel
    scenes: Sequence[Scene]
    truth: NDArray[np.int64]
    features: Features

    @classmethod
    def sit(cls, model: LoadedModel, *, copies: int, first_seed: int = _FIRST_SEED) -> Exam:
        """Render ``copies`` fresh scenes of every pair and encode them as the server would."""
        truth = np.repeat(np.arange(len(PAIRS)), copies)
        scenes = [
            sample_scene(first_seed + number, colour=PAIRS[pair][0], shape=PAIRS[pair][1])
            for number, pair in enumerate(truth)
        ]
        batches = [
            model.encode_images([as_file(scene) for scene in scenes[start : start + _BATCH]])
            for start in range(0, len(scenes), _BATCH)
        ]
        return cls(model=model, scenes=scenes, truth=truth, features=np.concatenate(batches))

    def answers(self, templates: Sequence[str]) -> NDArray[np.int64]:
        """Each picture's first choice among all pairs, under an ensemble of one or more templates."""
        similarity = self.features @ class_matrix(self.model, templates).T
        return np.asarray(similarity.argmax(axis=1))

    def accuracy(self, answers: NDArray[np.int64], among: Iterable[Pair] = PAIRS) -> Accuracy:
        """Top-1 on the pictures of some pairs; the labels to choose from are always all pairs."""
        chosen = np.isin(self.truth, [PAIRS.index(pair) for pair in among])
        right = int((answers == self.truth)[chosen].sum())
        return Accuracy(right=right, total=int(chosen.sum()))

    def accuracy_by_size(self, answers: NDArray[np.int64], size: str) -> Accuracy:
        """Top-1 on the pictures whose shape is small, medium or large."""
        chosen = np.array([scene.size == size for scene in self.scenes])
        return Accuracy(right=int((answers == self.truth)[chosen].sum()), total=int(chosen.sum()))

    def choice(self, wording: str, attribute: str, values: Sequence[str]) -> Accuracy:
        """How often ``wording`` fits best with the true value of a scene's attribute for ``{value}``.

        Pictures whose value is not among ``values`` are left out.
        """
        classes = np.stack(
            [class_matrix(self.model, [wording.replace("{value}", value)]) for value in values]
        )
        best = np.einsum("vnd,nd->nv", classes[:, self.truth], self.features).argmax(axis=1)
        truths = [getattr(scene, attribute) for scene in self.scenes]
        right = [values[choice] == true for choice, true in zip(best, truths, strict=True) if true in values]
        return Accuracy(right=sum(right), total=len(right))

    def confusions(self, answers: NDArray[np.int64], most: int = 5) -> list[tuple[Pair, Pair, int]]:
        """What was most often taken for what: (true pair, answer, how often)."""
        wrong = [(int(t), int(a)) for t, a in zip(self.truth, answers, strict=True) if t != a]
        ranked = sorted(set(wrong), key=lambda both: (-wrong.count(both), both))
        return [(PAIRS[t], PAIRS[a], wrong.count((t, a))) for t, a in ranked[:most]]


def class_matrix(model: LoadedModel, templates: Sequence[str]) -> Features:
    """One embedding a pair, (pairs, D): normalise each prompt's, average over templates, normalise again.

    The ensemble of CLIP (Radford et al. 2021, section 3.1.4) as open_clip computes it.
    """
    prompts = [template.replace("{label}", " ".join(pair)) for pair in PAIRS for template in templates]
    batches = [
        model.encode_texts(prompts[start : start + _BATCH]) for start in range(0, len(prompts), _BATCH)
    ]
    means = np.concatenate(batches).reshape(len(PAIRS), len(templates), -1).mean(axis=1)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def report(exam: Exam) -> str:
    """The figures of the model card, as Markdown tables."""
    ensemble = exam.answers(ENSEMBLE)
    rows = [(f"the {len(ENSEMBLE)} below together (template set `shapes`)", ensemble)]
    rows += [(f"`{template}`", exam.answers([template])) for template in ENSEMBLE]
    rows += [(f"`{unseen}`, unseen in training", exam.answers([unseen])) for unseen in UNSEEN_TEMPLATES]
    held_out = exam.accuracy(ensemble, HELD_OUT_PAIRS)
    lines = [
        f"Top-1 among {len(PAIRS)} labels on {len(exam.truth):,} fresh pictures, {held_out.total:,} of them"
        f" of the {len(HELD_OUT_PAIRS)} pairs that training never showed nor named, with 95 % intervals.",
        "",
        "| template | all pairs | held-out pairs | pairs trained on |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {exam.accuracy(answers)} | {exam.accuracy(answers, HELD_OUT_PAIRS)}"
            f" | {exam.accuracy(answers, TRAINING_PAIRS)} |"
            for name, answers in rows
        ),
        "",
        "| size of the shape (ensemble) | all pairs |",
        "| --- | --- |",
        *(f"| {size} | {exam.accuracy_by_size(ensemble, size)} |" for size in SIZES),
        "",
        "| question | labels to choose from | right |",
        "| --- | --- | --- |",
        *(
            f"| {attribute} | `{wording}`: {', '.join(values)} | {exam.choice(wording, attribute, values)} |"
            for wording, attribute, values in QUESTIONS
        ),
        "",
        "Most frequent confusions: "
        + ", ".join(
            f"{' '.join(true)} for {' '.join(answer)} ({count})"
            for true, answer, count in exam.confusions(ensemble)
        )
        + ".",
    ]
    return "\n".join(lines)


def write_card(card: Path, figures: str) -> None:
    """Put the figures between the two markers of the model card.

    Raises:
        ValueError: the card has not both markers, in order.
    """
    text = card.read_text()
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"{card.name} has no place for the figures between {BEGIN!r} and {END!r}")
    card.write_text(f"{text[: start + len(BEGIN)]}\n{figures}\n{text[end:]}")


def evaluate(*, copies: int) -> str:
    """Measure the committed files on ``copies`` fresh pictures of every pair, and update their model card."""
    figures = report(Exam.sit(ModelRegistry().load("shapes"), copies=copies))
    write_card(FILES / "README.md", figures)
    return figures


def main() -> None:
    """Measure the committed files and write the figures into their model card."""
    parser = argparse.ArgumentParser(prog="python -m models.shapes.evaluate", description=main.__doc__)
    parser.add_argument("--copies", type=int, default=20, help="fresh pictures of every pair (default: 20)")
    print(evaluate(copies=parser.parse_args().copies))


if __name__ == "__main__":
    main()

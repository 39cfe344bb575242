"""The evaluation itself: pictures and prompts are encoded once, everything else is arithmetic on features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import ScoringSpec
from prompts.classifier import ZeroShotClassifier
from prompts.ensemble import PromptPlan
from prompts.labels import Label
from prompts.template_worth import TemplateFeatures
from prompts.templates import TemplateSet
from service.evaluation.encoder import Encoder, Features
from service.evaluation.errors import EvaluationError
from service.evaluation.folder import SortedPictures
from service.evaluation.results import (
    BadPicture,
    ClassResult,
    ConfusedPicture,
    Evaluation,
    SetResult,
    TemplateResult,
)
from service.evaluation.statistics import Bootstrap, Flags

# Cosines in memory at once, of pictures with classes: 64 MiB of float32.
_COSINES = 2**24

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Encoded:
    """The good pictures: where they lie, what they show (N,), and their features (N, D)."""

    paths: tuple[str, ...]
    truth: NDArray[np.intp]
    features: Features


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """For each picture, all (N,): the first choice, the place of the truth, and its lag in cosine."""

    first: NDArray[np.intp]
    rank: NDArray[np.intp]
    lag: NDArray[np.float32]


def evaluate(
    pictures: SortedPictures,
    template_sets: Sequence[TemplateSet],
    encoder: Encoder,
    *,
    track: Track = lambda items, _, __: items,
    most_confused: int = 24,
) -> Evaluation:
    """Compare template sets, the first being what the others are measured by.

    ``track(items, what, total)`` hands items through and may show how far it is. Keeps features only:
    float32 (N, D) of the pictures and (P, D) of the distinct prompts.

    Raises:
        EvaluationError: not one picture could be encoded.
        ServerError, EmbeddingError: what ``encoder`` raises, or features of no use.
    """
    encoded, bad = _encode_pictures(pictures, encoder, track)
    plans = [PromptPlan.of([Label(name) for name in pictures.labels], one) for one in template_sets]
    rows = _encode_prompts(plans, encoder, track)
    examiner = _Examiner(
        pictures=encoded,
        labels=pictures.labels,
        scoring=encoder.scoring,
        track=track,
        most_confused=most_confused,
    )
    results: list[SetResult] = []
    for plan, template_set in zip(plans, template_sets, strict=True):
        features = np.stack([rows[text] for text in plan.texts])
        results.append(examiner.examine(template_set, plan, features))
    return Evaluation(
        model=encoder.name,
        model_digest=encoder.digest,
        folder=pictures.folder.resolve().name,
        pictures=len(encoded.paths),
        labels=pictures.labels,
        best=max(results, key=lambda one: one.top1.value).name,
        template_sets=tuple(results),
        bad_pictures=tuple(bad),
    )


def _encode_pictures(
    pictures: SortedPictures, encoder: Encoder, track: Track
) -> tuple[_Encoded, list[BadPicture]]:
    outcomes = encoder.pictures([pictures.folder / path for path in pictures.paths])
    good: list[int] = []
    features: list[Features] = []
    bad: list[BadPicture] = []
    for place, outcome in enumerate(track(outcomes, "pictures", len(pictures.paths))):
        if isinstance(outcome, str):
            bad.append(BadPicture(path=pictures.paths[place].as_posix(), reason=outcome))
        else:
            good.append(place)
            features.append(outcome)
    if not good:
        raise EvaluationError(
            f"none of the {len(bad)} pictures could be encoded; {bad[0].path}: {bad[0].reason}"
        )
    paths = tuple(pictures.paths[place].as_posix() for place in good)
    return _Encoded(paths=paths, truth=pictures.truth[good], features=np.stack(features)), bad


def _encode_prompts(plans: Sequence[PromptPlan], encoder: Encoder, track: Track) -> dict[str, Features]:
    """The features (D,) of every text of any plan; what several sets share is encoded once."""
    texts = list(dict.fromkeys(text for plan in plans for text in plan.texts))
    return dict(zip(texts, track(encoder.texts(texts), "prompts", len(texts)), strict=True))


class _Examiner:
    """Puts one template set after the other to the test, on the same pictures."""

    def __init__(
        self,
        *,
        pictures: _Encoded,
        labels: tuple[str, ...],
        scoring: ScoringSpec,
        track: Track,
        most_confused: int,
    ) -> None:
        self._pictures = pictures
        self._labels = labels
        self._scoring = scoring
        self._track = track
        self._most_confused = most_confused
        self._bootstrap = Bootstrap()
        self._first: Flags | None = None

    def examine(self, template_set: TemplateSet, plan: PromptPlan, features: Features) -> SetResult:
        """One set, from the features of ``plan.texts``."""
        truth, bootstrap = self._pictures.truth, self._bootstrap
        matrix = plan.embed(features)
        answers = self._answers(matrix)
        right = answers.first == truth
        if self._first is None:
            self._first = right
        return SetResult(
            name=template_set.name,
            top1=bootstrap.share(right),
            top5=bootstrap.share(answers.rank < 5),
            mean_per_class=bootstrap.mean_of_shares(right, truth),
            gain=bootstrap.difference(right, self._first),
            templates=tuple(self._templates(template_set, TemplateFeatures.of(plan, features), right)),
            classes=tuple(self._classes(answers)),
            confusion=_count_pairs(truth, answers.first, len(self._labels)),
            most_confused=tuple(self._confused(answers, matrix)),
        )

    def _templates(
        self, template_set: TemplateSet, prompts: TemplateFeatures, ensemble: Flags
    ) -> Iterator[TemplateResult]:
        named = enumerate(template_set.templates)
        for place, template in self._track(named, template_set.name, prompts.count):
            alone = self._is_right(prompts.alone(place))
            rest = self._is_right(prompts.without(place)) if prompts.count > 1 else None
            yield TemplateResult(
                template=template,
                alone=self._bootstrap.share(alone),
                worth=None if rest is None else self._bootstrap.difference(ensemble, rest),
            )

    def _classes(self, answers: _Answers) -> Iterator[ClassResult]:
        truth, count = self._pictures.truth, len(self._labels)
        sizes = np.bincount(truth, minlength=count).tolist()
        top1 = self._bootstrap.shares(answers.rank == 0, truth, count)
        top5 = self._bootstrap.shares(answers.rank < 5, truth, count)
        for label, size, first, five in zip(self._labels, sizes, top1, top5, strict=True):
            yield ClassResult(label=label, pictures=size, top1=first, top5=five)

    def _confused(self, answers: _Answers, matrix: Features) -> Iterator[ConfusedPicture]:
        """The wrong answers that are furthest ahead of the truth."""
        wrong = np.flatnonzero(answers.rank)
        worst = wrong[np.argsort(-answers.lag[wrong], kind="stable")][: self._most_confused]
        scores = ZeroShotClassifier(labels=self._labels, matrix=matrix, **self._scoring.model_dump()).score(
            self._pictures.features[worst]
        )
        for row, place in enumerate(worst.tolist()):
            truth, answer = int(self._pictures.truth[place]), int(answers.first[place])
            yield ConfusedPicture(
                path=self._pictures.paths[place],
                label=self._labels[truth],
                answer=self._labels[answer],
                label_score=float(scores.scores[row, truth]),
                answer_score=float(scores.scores[row, answer]),
            )

    def _is_right(self, matrix: Features) -> Flags:
        first = np.concatenate([cosines.argmax(axis=1) for cosines, _ in self._cosines(matrix)])
        return np.asarray(first == self._pictures.truth)

    def _answers(self, matrix: Features) -> _Answers:
        parts = [_rank(cosines, truth) for cosines, truth in self._cosines(matrix)]
        first, rank, lag = (np.concatenate(column) for column in zip(*parts, strict=True))
        return _Answers(first=first, rank=rank, lag=lag)

    def _cosines(self, matrix: Features) -> Iterator[tuple[Features, NDArray[np.intp]]]:
        """Cosines (n, C) and truth (n,) of all pictures, some at a time."""
        features, truth = self._pictures.features, self._pictures.truth
        step = max(1, _COSINES // len(matrix))
        for start in range(0, len(features), step):
            yield features[start : start + step] @ matrix.T, truth[start : start + step]


def _rank(cosines: Features, truth: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp], Features]:
    """First choice, place of the truth and its lag, (n,) each; of equal cosines the first label wins."""
    of_truth = np.take_along_axis(cosines, truth[:, np.newaxis], axis=1)
    earlier = np.arange(cosines.shape[1]) < truth[:, np.newaxis]
    rank = ((cosines > of_truth) | ((cosines == of_truth) & earlier)).sum(axis=1)
    return cosines.argmax(axis=1), rank, cosines.max(axis=1) - of_truth[:, 0]


def _count_pairs(truth: NDArray[np.intp], answers: NDArray[np.intp], classes: int) -> NDArray[np.intp]:
    """Row: truth; column: answer; intp (C, C)."""
    return np.bincount(truth * classes + answers, minlength=classes**2).reshape(classes, classes)

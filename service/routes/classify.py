"""``POST /classify``: pictures and labels in, probabilities out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from prompts.classifier import Predictions, ZeroShotClassifier
from prompts.templates import TemplateSet
from service.classes import check_classes, choose_templates
from service.context import Services, Work, admitted, ended_with_client, services_of
from service.errors import InvalidRequestError, TooLargeError, item_error, log_fault, url_reason
from service.inputs import ClassifyRequest, Picture, PictureSource, RemotePicture
from service.responses import JsonResponse
from service.schemas import ClassifyAnswer, ClassifyBody, ClassifyOptions, openapi_body
from service.served import Features, ServedModel

router = APIRouter(tags=["classify"])
_SCORED_INLINE = 4096  # similarities; that many take about a millisecond
_FILES = {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}}


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    openapi_extra=openapi_body(ClassifyBody, options=ClassifyOptions, files=_FILES),
)
async def classify(request: Request) -> Response:
    """Score pictures against labels, or against a named classifier.

    Takes JSON, a form with repeated `image` and `labels` fields, or a bare picture with its labels in
    the query. Predictions come sorted, best first. Of several pictures a bad one is an `error` at its
    index; a single bad one fails the request.
    """
    services = services_of(request)
    async with admitted(request) as work:
        with work.timings.measure("read"):
            wanted = await services.inputs.classify(request)
        work.places.grow_to(len(wanted.pictures))
        async with ended_with_client(request):
            return JsonResponse(await classified(services, wanted, work))


async def classified(services: Services, wanted: ClassifyRequest, work: Work) -> dict[str, Any]:
    """The answer of ``POST /classify`` to a request that was read and admitted."""
    name = wanted.classes.classifier
    if name is not None:
        await services.classifiers.look_for(name)
    model = wanted.model if name is None else services.classifiers.model_of(name, wanted.model)
    with services.served_model(model).use() as served:
        template_set, classifier = await _classifier(services, served, wanted)
        _check_answer(wanted, classifier, services.settings.max_predictions)
        features = await image_features(services, served, wanted.pictures, work)
    if wanted.single and isinstance(features[0], Exception):
        raise features[0]
    log_fault(features, work.timings.ids)
    with work.timings.measure("score", items=len(features)):
        results = await _scored(features, classifier, wanted.top_k)
    return {
        "model": served.name,
        **({} if name is None else {"classifier": name}),
        "template_set": template_set.name,
        "activation": classifier.activation,
        "results": results,
    }


async def _classifier(
    services: Services, served: ServedModel, wanted: ClassifyRequest
) -> tuple[TemplateSet, ZeroShotClassifier]:
    """The classifier that is named, or the one that the labels make."""
    if wanted.classes.classifier is not None:
        stored, classifier = services.classifiers.get(wanted.classes.classifier, wanted.activation)
        return stored.template_set, classifier
    settings = services.settings
    template_set = choose_templates(wanted.classes, services.template_sets, settings)
    labels = check_classes(
        wanted.classes,
        template_set,
        settings,
        max_labels=settings.max_labels,
        max_prompts=settings.max_prompts,
    )
    classifier = await services.engine.classifier_for(
        served, labels, template_set, activation=wanted.activation
    )
    return template_set, classifier


async def image_features(
    services: Services, served: ServedModel, sources: Sequence[PictureSource], work: Work
) -> list[Features | Exception]:
    """Features (D,) of each picture in its place; embeddings made earlier are not encoded again."""
    pictures = await _fetched(services, sources, work)
    files = [picture for picture in pictures if isinstance(picture, bytes)]
    encoded = iter(
        await services.engine.encode_images(served, files, timings=work.timings, deadline=work.deadline)
    )
    dim = served.model.manifest.embedding_dim
    return [next(encoded) if isinstance(picture, bytes) else _given(picture, dim) for picture in pictures]


async def _fetched(services: Services, sources: Sequence[PictureSource], work: Work) -> list[Picture]:
    """The pictures that were sent, and in their places those that lay elsewhere."""
    remote = [source for source in sources if isinstance(source, RemotePicture)]
    fetched: list[bytes | Exception] = []
    if remote:
        with work.timings.measure("fetch", items=len(remote)):
            fetched = await services.inputs.fetch(remote)
    for outcome in fetched:
        if isinstance(outcome, Exception):
            services.engine.metrics.rejected.labels(url_reason(outcome)).inc()
    outcomes = iter(fetched)
    return [next(outcomes) if isinstance(source, RemotePicture) else source for source in sources]


def _given(picture: NDArray[np.float32] | Exception, dim: int) -> Features | Exception:
    if isinstance(picture, Exception) or picture.shape == (dim,):
        return picture
    return InvalidRequestError(f"embedding: has {picture.size} numbers, the model's has {dim}")


def _check_answer(wanted: ClassifyRequest, classifier: ZeroShotClassifier, limit: int) -> None:
    labels = len(classifier.labels)
    predictions = len(wanted.pictures) * min(wanted.top_k or labels, labels)
    if predictions > limit:
        raise TooLargeError(
            f"top_k: the answer would have {predictions} predictions, at most {limit} are allowed"
        )


async def _scored(
    features: Sequence[Features | Exception], classifier: ZeroShotClassifier, top_k: int | None
) -> list[dict[str, Any]]:
    """In a thread, where it takes so long that others would notice."""
    if len(features) * len(classifier.labels) <= _SCORED_INLINE:
        return _results(features, classifier, top_k)
    return await asyncio.to_thread(_results, features, classifier, top_k)


def _results(
    features: Sequence[Features | Exception], classifier: ZeroShotClassifier, top_k: int | None
) -> list[dict[str, Any]]:
    good = [row for row in features if not isinstance(row, Exception)]
    predictions = _predictions(classifier.top(np.stack(good), top_k), classifier.labels) if good else []
    scored = iter(predictions)
    return [
        {"index": index, "error": item_error(row)}
        if isinstance(row, Exception)
        else {"index": index, "predictions": next(scored)}
        for index, row in enumerate(features)
    ]


def _predictions(best: Predictions, labels: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    # Whole columns become Python numbers at once: one at a time would cost ten times as much.
    columns = zip(best.indices.tolist(), best.scores.tolist(), best.similarity.tolist(), strict=True)
    return [
        [
            {"label": labels[index], "score": score, "similarity": similarity}
            for index, score, similarity in zip(*row, strict=True)
        ]
        for row in columns
    ]

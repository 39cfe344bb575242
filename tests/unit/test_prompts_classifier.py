"""The classifier: the published probabilities of CLIP, and rankings equal to a full stable sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prompts.classifier import ZeroShotClassifier, best_first, sigmoid, softmax
from prompts.ensemble import normalise
from prompts.errors import EmbeddingError, PromptError

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "scoring"
needs_goldens = pytest.mark.skipif(not GOLDENS.exists(), reason="the reference features are not here")


def unit(rows: int, dim: int = 32, seed: int = 0) -> NDArray[np.float32]:
    return normalise(np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32))


def golden(name: str) -> NDArray[np.float32]:
    return normalise(np.load(GOLDENS / name).astype(np.float32))


def classifier(matrix: NDArray[np.float32], **options: object) -> ZeroShotClassifier:
    names = tuple(f"label {row}" for row in range(len(matrix)))
    return ZeroShotClassifier(**{"labels": names, "matrix": matrix, "logit_scale": 100.0, **options})


@needs_goldens
def test_probabilities_are_those_published_with_clip():
    scored = classifier(golden("text_features.npy")).score(golden("image_features.npy"))
    np.testing.assert_allclose(scored.scores, [[0.992794, 0.004211, 0.002996]], atol=1e-5)


@needs_goldens
def test_real_text_features_of_coco_find_their_own_class():
    classes = golden("coco80_text_features.npy")
    predicted = classifier(classes).top(classes, k=3)
    np.testing.assert_array_equal(predicted.indices[:, 0], np.arange(80))
    np.testing.assert_allclose(predicted.similarity[:, 0], 1, atol=1e-5)
    assert (predicted.scores[:, 0] > 0.5).all()
    animals = {"cat": 15, "dog": 16, "horse": 17, "sheep": 18, "cow": 19}
    assert animals["dog"] in predicted.indices[animals["cat"], 1:]


def test_scores_are_activation_of_scaled_cosine():
    matrix, features = unit(5), unit(3, seed=1)
    cosine = features.astype(np.float64) @ matrix.T.astype(np.float64)
    logits = np.exp(20 * cosine)
    soft = classifier(matrix, logit_scale=20.0, logit_bias=-3.0).score(features)
    np.testing.assert_allclose(soft.similarity, cosine, atol=1e-6)
    np.testing.assert_allclose(soft.scores, logits / logits.sum(axis=1, keepdims=True), atol=1e-5)
    siglip = classifier(matrix, logit_scale=20.0, logit_bias=-3.0, activation="sigmoid").score(features)
    np.testing.assert_allclose(siglip.scores, 1 / (1 + np.exp(3 - 20 * cosine)), rtol=1e-4)
    assert soft.scores.dtype == siglip.scores.dtype == np.float32


def test_extreme_logits_neither_overflow_nor_vanish():
    logits = np.array([[-1000, -20, 0, 20, 1000]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[0, 0, 0, 0, 1]])
    exact = 1 / (1 + np.exp(-logits[0, 1:4].astype(np.float64)))
    np.testing.assert_allclose(sigmoid(logits)[0, 1:4], exact, rtol=1e-6)
    np.testing.assert_array_equal(sigmoid(logits)[0, [0, 4]], [0, 1])


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(-3, 3), min_size=40, max_size=40), min_size=rows, max_size=rows
        )
    ),
    st.integers(1, 45),
)
def test_best_first_is_a_stable_sort_cut_short(values: list[list[int]], k: int):
    similarity = np.array(values, dtype=np.float32)
    expected = [sorted(range(40), key=lambda column: -row[column])[:k] for row in similarity.tolist()]
    assert best_first(similarity, k).tolist() == expected


def test_top_gives_the_scores_of_its_indices():
    matrix, features = unit(200), unit(4, seed=1)
    made = classifier(matrix)
    every, few, scored = made.top(features), made.top(features, 5), made.score(features)
    assert every.indices.shape == (4, 200)
    np.testing.assert_array_equal(few.indices, every.indices[:, :5])
    for picture, best in enumerate(few.indices):
        np.testing.assert_array_equal(few.scores[picture], scored.scores[picture, best])
        np.testing.assert_array_equal(few.similarity[picture], scored.similarity[picture, best])
    assert (np.diff(every.similarity, axis=1) <= 0).all()


def test_top_of_more_than_there_are_is_all():
    assert classifier(unit(3)).top(unit(2), 10).indices.shape == (2, 3)


def test_saturated_scores_are_still_ranked():
    matrix = np.array([[0.8, 0.6], [1, 0]], dtype=np.float32)
    predicted = classifier(matrix, logit_scale=1000.0, activation="sigmoid").top(matrix[1:])
    assert predicted.scores.tolist() == [[1, 1]]
    assert predicted.indices.tolist() == [[1, 0]]


def test_no_picture_is_no_prediction():
    assert classifier(unit(3)).top(np.empty((0, 32), dtype=np.float32), 1).indices.shape == (0, 1)


@pytest.mark.parametrize("k", [0, -1])
def test_top_of_nothing_is_refused(k: int):
    with pytest.raises(PromptError, match=f"top_k: must be at least 1, not {k}"):
        classifier(unit(3)).top(unit(1), k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a", "b")}, "for 2 labels"),
        ({"matrix": unit(3)[0]}, r"shape \(32,\) for 3 labels"),
        ({"matrix": unit(3)[:0], "labels": ()}, "for 0 labels"),
        ({"matrix": unit(3).astype(np.float64)}, "must be float32, not float64"),
        ({"logit_scale": 0.0}, "logit_scale: must be above 0"),
        ({"activation": "relu"}, "softmax or sigmoid, not 'relu'"),
    ],
)
def test_a_classifier_is_checked(options: dict[str, object], message: str):
    with pytest.raises(PromptError, match=message):
        ZeroShotClassifier(**{"labels": ("a", "b", "c"), "matrix": unit(3), "logit_scale": 100.0, **options})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (unit(2, dim=31), r"\(2, 31\), must be \(N, 32\)"),
        (unit(1)[0], r"\(32,\), must be"),
        (np.full((1, 32), np.nan, dtype=np.float32), "not finite"),
    ],
)
def test_features_are_checked(features: NDArray[np.float32], message: str):
    with pytest.raises(EmbeddingError, match=message):
        classifier(unit(3)).score(features)

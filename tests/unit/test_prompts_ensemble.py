"""The ensemble: equal to its definition written out, and to open_clip's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prompts.ensemble import Label, PromptPlan, build_class_embeddings, class_embeddings, normalise
from prompts.errors import EmbeddingError
from prompts.templates import TemplateSet

TEMPLATES = TemplateSet(name="three", templates=("a {label}", "the {label}", "{label}"))


def by_definition(features: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float64]:
    rows = iter(features.astype(np.float64))
    classes = []
    for count in counts:
        prompts = [next(rows) for _ in range(count)]
        mean = sum(prompt / np.linalg.norm(prompt) for prompt in prompts) / count
        classes.append(mean / np.linalg.norm(mean))
    return np.array(classes)


class Encoder:
    """Gives every text features that depend on the text alone, and remembers what it was asked."""

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(tuple(texts))
        return np.array([self.features(text) for text in texts])

    def features(self, text: str) -> NDArray[np.float32]:
        generator = np.random.default_rng(list(text.encode()))
        return generator.standard_normal(self.dim).astype(np.float32) * 7


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(2, 40), st.integers(0, 2**32))
def test_class_embeddings_are_as_defined(counts: list[int], dim: int, seed: int):
    generator = np.random.default_rng(seed)
    lengths = 10.0 ** generator.uniform(-3, 3, (sum(counts), 1))
    features = (generator.standard_normal((sum(counts), dim)) * lengths).astype(np.float32)
    features[:, 0] += lengths[:, 0].astype(np.float32)
    embedded = class_embeddings(features, counts)
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, by_definition(features, counts), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4], [1, 5, 2]])
def test_every_way_of_summing_gives_the_definition(counts: list[int]):
    features = np.random.default_rng(1).standard_normal((sum(counts), 8)).astype(np.float32)
    np.testing.assert_allclose(class_embeddings(features, counts), by_definition(features, counts), atol=1e-6)


def test_long_prompts_weigh_no_more_than_short_ones():
    features = np.array([[1000, 0], [0, 0.001]], dtype=np.float32)
    np.testing.assert_allclose(class_embeddings(features, [2]), [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_the_input_is_left_as_it_was():
    features = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    before = features.copy()
    class_embeddings(features, [2, 4])
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize(
    ("features", "counts", "message"),
    [
        (np.zeros((2, 3)), [1, 1], r"features\[0\]: .* length is 0"),
        ([[1, 0], [np.nan, 1]], [1, 1], r"features\[1\]: .* nan"),
        ([[1, 0], [np.inf, 1]], [2], r"features\[1\]: .* inf"),
        ([[1, 0], [0, 1], [0, -1]], [1, 2], r"classes\[1\]: .* length is 0"),
        (np.ones((3, 2)), [1, 1], "3 rows for 2 prompts"),
        (np.ones((3, 2)), [3, 0], "at least one prompt"),
        (np.ones((0, 2)), [], "at least one prompt"),
        (np.ones(3), [3], r"must be \(P, D\)"),
    ],
)
def test_features_without_direction_are_refused(features: object, counts: list[int], message: str):
    with pytest.raises(EmbeddingError, match=message):
        class_embeddings(np.asarray(features, dtype=np.float32), counts)


def test_normalise_gives_rows_of_length_one():
    unit = normalise(np.array([[3, 4], [0, -2]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, -1]], atol=1e-7)


def test_building_is_encoding_and_averaging():
    encoder = Encoder()
    labels = [Label("cat"), Label("dog", ("a puppy", "a dog's snout")), Label("bird")]
    built = build_class_embeddings(labels, TEMPLATES, encoder, batch=3)
    prompts = [*TEMPLATES.fill("cat"), "a puppy", "a dog's snout", *TEMPLATES.fill("bird")]
    features = np.array([encoder.features(prompt) for prompt in prompts])
    np.testing.assert_allclose(built, by_definition(features, [3, 2, 3]), atol=1e-6)


def test_every_distinct_prompt_is_encoded_once():
    encoder = Encoder()
    labels = [Label("cat"), Label("kitten", ("the cat", "a cat", "a kitten")), Label("tom", ("the cat",))]
    built = build_class_embeddings(labels, TEMPLATES, encoder)
    assert encoder.calls == [("a cat", "the cat", "cat", "a kitten")]
    prompts = ["a cat", "the cat", "cat", "the cat", "a cat", "a kitten", "the cat"]
    features = np.array([encoder.features(prompt) for prompt in prompts])
    np.testing.assert_allclose(built, by_definition(features, [3, 3, 1]), atol=1e-6)


def test_batches_are_kept_small_and_reported():
    encoder, heard = Encoder(), []
    labels = [Label(name) for name in "abc"]
    build_class_embeddings(
        labels, TEMPLATES, encoder, batch=4, progress=lambda done, total: heard.append((done, total))
    )
    assert [len(call) for call in encoder.calls] == [4, 4, 1]
    assert heard == [(4, 9), (8, 9), (9, 9)]


def test_a_plan_refuses_features_of_other_texts():
    plan = PromptPlan.of([Label("cat")], TEMPLATES)
    with pytest.raises(EmbeddingError, match=r"\(2, 4\) for 3 texts"):
        plan.embed(np.ones((2, 4), dtype=np.float32))


def test_nothing_to_encode_is_an_error():
    with pytest.raises(EmbeddingError, match="nothing to encode"):
        build_class_embeddings([], TEMPLATES, Encoder())


def test_open_clip_builds_the_same_classifier():
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")

    class Model:
        """Looks like a CLIP model to open_clip, and gives the features of ``Encoder``."""

        def encode_text(self, texts, normalize=False):
            features = torch.from_numpy(encoder(texts))
            return torch.nn.functional.normalize(features, dim=-1) if normalize else features

    class Texts(list):
        def to(self, _device):
            return self

    encoder, names = Encoder(), ["cat", "great white shark", "dog", "tench", "wren"]
    reference = open_clip.build_zero_shot_classifier(
        Model(), Texts, names, [template.replace("{label}", "{}") for template in TEMPLATES.templates]
    )
    built = build_class_embeddings([Label(name) for name in names], TEMPLATES, encoder)
    np.testing.assert_allclose(built, reference.numpy().T, atol=1e-6)

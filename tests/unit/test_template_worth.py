from __future__ import annotations

import numpy as np
import pytest

from prompts.ensemble import PromptPlan
from prompts.errors import EmbeddingError
from prompts.labels import Label
from prompts.template_worth import TemplateFeatures
from prompts.templates import TemplateSet

TEMPLATES = TemplateSet(name="three", templates=("a {label}", "the {label}", "{label}"))


def taken_apart(*labels: Label) -> tuple[TemplateFeatures, PromptPlan, np.ndarray]:
    plan = PromptPlan.of(labels, TEMPLATES)
    features = np.random.default_rng(3).normal(size=(len(plan.texts), 8)).astype(np.float32)
    return TemplateFeatures.of(plan, features), plan, features


def test_a_template_alone_is_the_set_of_that_template() -> None:
    apart, plan, features = taken_apart(Label("cat"), Label("dog"))
    rows = [features[plan.texts.index(prompt)] for prompt in ("the cat", "the dog")]
    expected = np.stack([row / np.linalg.norm(row) for row in rows])
    np.testing.assert_allclose(apart.alone(1), expected, rtol=1e-6)


def test_an_ensemble_without_a_template_is_that_of_the_others() -> None:
    apart, _, features = taken_apart(Label("cat"), Label("dog"))
    others = TemplateSet(name="two", templates=(TEMPLATES.templates[0], TEMPLATES.templates[2]))
    plan = PromptPlan.of([Label("cat"), Label("dog")], others)
    np.testing.assert_allclose(apart.without(1), plan.embed(features[[0, 2, 3, 5]]), rtol=1e-5)


def test_the_only_template_cannot_be_left_out() -> None:
    plan = PromptPlan.of([Label("cat")], TemplateSet(name="one", templates=("a {label}",)))
    with pytest.raises(EmbeddingError, match="the only one"):
        TemplateFeatures.of(plan, np.ones((1, 4), np.float32)).without(0)


def test_labels_with_prompts_of_their_own_have_no_templates_to_compare() -> None:
    with pytest.raises(EmbeddingError, match="prompts of their own"):
        taken_apart(Label("cat"), Label("dog", ("a puppy",)))

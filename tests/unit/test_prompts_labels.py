"""Labels: what is refused, and how the message finds the culprit."""

from __future__ import annotations

import pytest

from prompts.errors import LabelError, TooManyLabelsError
from prompts.labels import Label, check_labels, prompts_for
from prompts.templates import TemplateSet

TEMPLATES = TemplateSet(name="two", templates=("a {label}", "the {label}"))


def test_templates_are_used_unless_a_label_has_prompts():
    assert prompts_for(Label("cat"), TEMPLATES) == ("a cat", "the cat")
    assert prompts_for(Label("dog", ("a puppy",)), TEMPLATES) == ("a puppy",)


def test_a_list_at_its_limits_is_accepted():
    labels = [Label("abcde"), Label("dog", ("a pup", "puppy"))]
    check_labels(labels, max_labels=2, max_prompts=2, max_length=5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: at least one"),
        ([Label("a"), Label("")], r"labels\[1\]: is blank"),
        ([Label(" \t\n")], r"labels\[0\]: is blank"),
        ([Label("a"), Label("b"), Label("a")], r"labels\[2\]: 'a' is the same as labels\[0\]"),
        ([Label("abcdef")], r"labels\[0\]: has 6 characters, at most 5"),
        ([Label("a", ())], r"labels\[0\]\.prompts: at least one"),
        ([Label("a", ("b", " "))], r"labels\[0\]\.prompts\[1\]: is blank"),
        ([Label("a", ("b", "abcdef"))], r"labels\[0\]\.prompts\[1\]: has 6 characters, at most 5"),
        ([Label("a\ud800")], r"labels\[0\]: is not valid Unicode"),
    ],
)
def test_a_bad_list_is_refused(labels: list[Label], message: str):
    with pytest.raises(LabelError, match=message):
        check_labels(labels, max_labels=3, max_prompts=2, max_length=5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([Label(name) for name in "abcd"], "labels: 4 are given, at most 3"),
        ([Label("a", ("b", "c", "d"))], r"labels\[0\]\.prompts: 3 are given, at most 2"),
    ],
)
def test_too_many_is_an_error_of_its_own(labels: list[Label], message: str):
    with pytest.raises(TooManyLabelsError, match=message):
        check_labels(labels, max_labels=3, max_prompts=2, max_length=5)

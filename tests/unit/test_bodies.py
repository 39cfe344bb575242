"""Bodies made to cost much: what is wrong with them is found at its first sight, not counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.body import parse_fields, parse_json
from service.errors import InvalidRequestError, TooLargeError
from service.routes.hugging_face import ZeroShotBody
from service.routes.openai import EmbeddingsBody
from service.routes.weaviate import VectorizeBody
from service.schemas import MAX_ITEMS, MAX_LABELS, ClassifierBody, ClassifyBody, ClassifyOptions, EmbedBody

LISTS: list[tuple[type[BaseModel], str]] = [
    (ClassifyBody, '{"labels": [%s]}'),
    (ClassifyBody, '{"labels": [{"label": "a", "prompts": [%s]}]}'),
    (ClassifyBody, '{"labels": ["a"], "templates": [%s]}'),
    (ClassifyBody, '{"labels": ["a"], "images": [%s]}'),
    (ClassifyBody, '{"labels": ["a"], "image": {"embedding": [%s]}}'),
    (EmbedBody, '{"inputs": [%s]}'),
    (ClassifierBody, '{"labels": [%s]}'),
    (ClassifierBody, '{"labels": ["a"], "templates": [%s]}'),
    (EmbeddingsBody, '{"input": [%s]}'),
    (EmbeddingsBody, '{"input": [0, %s]}'),
    (EmbeddingsBody, '{"input": [[%s]]}'),
    (ZeroShotBody, '{"inputs": "", "parameters": {"candidate_labels": [%s]}}'),
    (VectorizeBody, '{"texts": [%s]}'),
    (VectorizeBody, '{"images": [%s]}'),
]


@pytest.mark.parametrize(("schema", "body"), LISTS)
def test_the_first_fault_of_a_list_is_the_last_that_is_looked_at(schema: type[BaseModel], body: str) -> None:
    """An error each, kept until the end, made 32 MB of JSON into 11 GB and two minutes."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(body % ", ".join(['{"nonsense": 1}'] * 1000))
    assert caught.value.error_count() <= 5


@pytest.mark.parametrize(("schema", "body"), LISTS)
def test_a_list_without_end_is_over_a_limit(schema: type[BaseModel], body: str) -> None:
    good: Any = "0" if "embedding" in body or "[0, " in body or "[[" in body else '"a"'
    if '"images": [%s]' in body and schema is ClassifyBody:
        good = '{"base64": ""}'
    elif schema is EmbedBody:
        good = '{"text": ""}'
    with pytest.raises(TooLargeError, match=r"at most (10000|8192|1000000) items"):
        parse_json((body % ",".join([good] * (MAX_LABELS + 1))).encode(), schema)


def test_a_fault_among_many_is_named() -> None:
    labels = ["a"] * 100 + [{"label": 1}] * MAX_ITEMS
    with pytest.raises(InvalidRequestError, match=r"^labels\[100\]\.label: "):
        parse_json(json.dumps({"labels": labels}).encode(), ClassifyBody)


NESTED: list[tuple[type[BaseModel], str]] = [
    (ClassifyBody, '{"labels": ["a"], %s}'),
    (ClassifyBody, '{"labels": ["a", {"label": "b", "prompts": ["c"], %s}]}'),
    (ClassifyBody, '{"labels": ["a"], "image": {%s}}'),
    (EmbedBody, '{"inputs": [{%s}]}'),
    (EmbeddingsBody, '{"input": [{%s}]}'),
    (ZeroShotBody, '{"inputs": "", "parameters": {"candidate_labels": ["a"], %s}}'),
    (VectorizeBody, "{%s}"),
]


@pytest.mark.parametrize(("schema", "body"), NESTED)
def test_fields_that_there_are_not_are_not_counted_for_ever(schema: type[BaseModel], body: str) -> None:
    """An error each made 32 MB of JSON into 3 GB and half a minute."""
    unknown = ", ".join(f'"x{number}": 0' for number in range(1000))
    with pytest.raises(InvalidRequestError, match=r"^body: has more than 10 fields that there are not$"):
        parse_json((body % unknown).encode(), schema)
    with pytest.raises(InvalidRequestError, match=r"colour: there is no such field$"):
        parse_json((body % '"colour": 1').encode(), schema)


def test_the_name_of_a_field_that_there_is_not_is_cut() -> None:
    with pytest.raises(InvalidRequestError, match=r"^x{80}: there is no such field$"):
        parse_json(json.dumps({"labels": [], "x" * 1000: 1}).encode(), ClassifyBody)


def test_a_form_has_no_other_fields_either() -> None:
    with pytest.raises(InvalidRequestError, match=r"^colour: there is no such field$"):
        parse_fields({"labels": ["a"], "colour": "red"}, ClassifyOptions)

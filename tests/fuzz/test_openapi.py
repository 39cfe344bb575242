"""What the OpenAPI document promises: every kind of request it knows, and requests that break its rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.servers import PATIENCE, fuzzed_server
from tests.server import Server

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with fuzzed_server(tmp_path_factory.mktemp("openapi")) as server:
        yield server


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.name
)
def test_every_answer_is_one_the_document_knows(server: Server, mode: GenerationMode) -> None:
    tried: dict[str, int] = {}
    schema = schemathesis.openapi.from_url(f"{server.url()}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        tried[operation.label] = _try(operation.as_strategy(generation_mode=mode))
    asked = {label for label, count in tried.items() if count}
    assert asked >= {"POST /classify", "POST /embed", "PUT /classifiers/{name}"}
    if mode is GenerationMode.POSITIVE:
        assert asked == tried.keys()


def _try(cases: Any) -> int:
    """Ask what ``cases`` describe; how many there were. Some routes have no rule that could be broken."""
    count = 0

    @settings(phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case: Case) -> None:
        nonlocal count
        count += 1
        case.validate_response(case.call(timeout=PATIENCE), checks=_CHECKS)

    try:
        ask()
    except Unsatisfiable:
        assert count == 0
    return count

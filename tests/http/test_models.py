"""``/models``, ``/template-sets`` and the OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from tests.apps import Client, base64, serving
from tests.pictures import png
from tests.toy_models import DIM, write_toy_model


async def test_every_model_is_listed_loaded_or_not(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models", name="idle")
    broken = write_toy_model(tmp_path / "models", name="broken")
    (broken / "model.json").write_text("{")
    async with serving(tmp_path) as client:
        answer = (await client.get("/models")).json()
        assert answer["default"] == "toy"
        models = {model["name"]: model for model in answer["models"]}
        assert models.keys() >= {"toy", "idle", "broken"}
        assert (models["toy"]["loaded"], models["idle"]["loaded"], models["broken"]["loaded"]) == (
            True,
            False,
            False,
        )
        assert "model.json" in models["broken"]["error"]
        assert (models["toy"]["provider"], models["toy"]["embedding_dim"]) == ("cpu", DIM)
        assert (await client.get("/models/toy")).json() == models["toy"]
        assert (await client.get("/models/idle")).json() == models["idle"]


async def test_template_sets_are_listed_with_their_templates(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "haiku.json").write_text(json.dumps({"description": "Mine.", "templates": ["{label} at dawn"]}))
    async with serving(tmp_path, template_sets_dir=folder, default_template_set="haiku") as client:
        answer = (await client.get("/template-sets")).json()
        assert answer["default"] == "haiku"
        sets = {one["name"]: one for one in answer["template_sets"]}
        assert sets["haiku"] == {
            "name": "haiku",
            "description": "Mine.",
            "source": "",
            "templates": ["{label} at dawn"],
        }
        assert len(sets["openai-imagenet"]["templates"]) == 80
        assert len(sets["openai-simple"]["templates"]) == 7
        body = {"image": {"base64": base64(png())}, "labels": ["a"]}
        assert (await client.post("/classify", json=body)).json()["template_set"] == "haiku"


# OpenAPI


@pytest.fixture
async def document(client: Client) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


async def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document)
    assert references(document) <= schemas


async def test_the_document_has_every_route_with_what_it_takes_and_gives(document: dict[str, Any]) -> None:
    assert set(document["paths"]) >= {
        "/classify",
        "/embed",
        "/classifiers",
        "/classifiers/{name}",
        "/models",
        "/models/{name}",
        "/template-sets",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    for path in ("/classify", "/embed"):
        operation = document["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {
            "application/json",
            "multipart/form-data",
            "image/*",
        }
        assert "$ref" in operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"200", "202"} <= set(document["paths"]["/classifiers/{name}"]["put"]["responses"])


async def test_answers_match_the_document(client: Client, document: dict[str, Any]) -> None:
    bodies: dict[str, tuple[str, str, Any]] = {
        "/classify": ("post", "/classify", {"image": {"base64": base64(png())}, "labels": ["a"]}),
        "/embed": ("post", "/embed", {"inputs": [{"text": "a"}, {"image": {"base64": base64(png())}}]}),
        "/classifiers/{name}": ("put", "/classifiers/pets", {"labels": ["a"]}),
    }
    for path, (method, url, body) in bodies.items():
        operation = document["paths"][path][method]
        given = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, given | {"components": document["components"]})
        answer = await client.request(method.upper(), url, json=body)
        gives = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), gives | {"components": document["components"]})


async def test_the_docs_page_is_there(client: Client) -> None:
    assert (await client.get("/docs")).status_code == 200

"""Classifiers declared in files: built before readiness, refused at the start if they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.declared import DeclarationError, read_declared
from tests.apps import Client, base64, serving, until
from tests.pictures import png


def declare(folder: Path, name: str, **body: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(body))
    return path


async def classify(client: Client, name: str) -> Any:
    body = {"image": {"base64": base64(png())}, "classifier": name, "top_k": 1}
    return await client.post("/classify", json=body)


async def test_they_are_served_from_the_first_moment(tmp_path: Path) -> None:
    folder = tmp_path / "declared"
    declare(folder, "pets", labels=["cat", {"label": "dog", "prompts": ["a puppy"]}])
    declare(folder, "things", labels=[f"thing {n}" for n in range(600)], templates=["a {label}"])
    (folder / "notes.txt").write_text("not a classifier")
    async with serving(tmp_path, declared_classifiers_dir=folder) as client:
        for name in ("pets", "things"):
            assert (await classify(client, name)).status_code == 200
        listed = (await client.get("/classifiers")).json()["classifiers"]
        assert [(one["name"], one["labels"]) for one in listed] == [("pets", 2), ("things", 600)]


async def test_the_next_start_builds_only_what_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "declared"
    declare(folder, "pets", labels=["cat", "dog"])
    declare(folder, "things", labels=["cup"])
    async with serving(tmp_path, declared_classifiers_dir=folder):
        pass
    declare(folder, "things", labels=["cup", "bowl", "plate"])
    async with serving(tmp_path, declared_classifiers_dir=folder) as client:
        assert await client.metric("items_total", model="toy", kind="text") == 3
        assert (await client.get("/classifiers/things")).json()["labels"] == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"labels": ["cat"], "modle": "toy"}, r"bad\.json: modle: "),
        ({"labels": []}, r"bad\.json: labels: at least one"),
        ({"labels": ["cat"], "template_set": "unheard-of"}, r"bad\.json: .*unheard-of"),
        ({"labels": ["cat"], "model": "absent"}, r"bad\.json: no model named 'absent'"),
        ({"labels": ["cat"], "templates": ["no place"]}, r"bad\.json: templates\[0\]"),
    ],
)
async def test_a_wrong_one_stops_the_start(
    tmp_path: Path, body: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda _, number: signals.append(number))
    declare(tmp_path / "declared", "bad", **body)
    async with serving(tmp_path, wait=False, declared_classifiers_dir=tmp_path / "declared") as client:
        await until(lambda: signals)
        assert not client.services.ready
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(client.services.failure)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"DECLARED_CLASSIFIERS_DIR: .*absent is no directory"):
        read_declared(tmp_path / "absent")
    (tmp_path / "torn.json").write_text('{"labels": [')
    with pytest.raises(DeclarationError, match=r"torn\.json: "):
        read_declared(tmp_path)


async def test_a_name_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.kill", lambda *_: None)
    declare(tmp_path / "declared", "-bad", labels=["cat"])
    async with serving(tmp_path, wait=False, declared_classifiers_dir=tmp_path / "declared") as client:
        await until(lambda: client.services.failure)
        assert "-bad.json: name: " in str(client.services.failure)

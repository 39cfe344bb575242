"""``/classifiers``: made once, served by name, kept across restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prompts.store import DirectoryStore
from tests.apps import Client, base64, serving, until
from tests.pictures import png
from tests.toy_models import write_toy_model

IMAGE = {"base64": base64(png())}
MANY = [f"thing {number}" for number in range(700)]


async def put(client: Client, name: str = "pets", **body: Any) -> Any:
    return await client.put(f"/classifiers/{name}", json={"labels": ["cat", "dog"]} | body)


async def described(client: Client, name: str = "pets") -> dict[str, Any]:
    answer = await client.get(f"/classifiers/{name}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def classify(client: Client, **body: Any) -> Any:
    return await client.post("/classify", json={"image": IMAGE} | body)


async def is_ready(client: Client, name: str = "pets") -> None:
    await until(lambda: client.services.classifiers.describe(name)["state"] == "ready")


async def test_a_named_classifier_scores_as_its_labels_do(client: Client) -> None:
    made = await put(client, template_set="openai-simple")
    assert made.status_code == 200
    body = made.json()
    assert body.pop("created").endswith("+00:00")
    assert body == {
        "name": "pets",
        "model": "toy",
        "template_set": "openai-simple",
        "labels": 2,
        "state": "ready",
        "done": 14,
        "total": 14,
    }
    assert await described(client) == made.json()
    by_name = (await classify(client, classifier="pets")).json()
    by_labels = (await classify(client, labels=["cat", "dog"], template_set="openai-simple")).json()
    assert by_name.pop("classifier") == "pets"
    assert by_name == by_labels


async def test_it_encodes_no_text_when_used(client: Client) -> None:
    await put(client)
    encoded = await client.metric("items_total", model="toy", kind="text")
    for top_k, activation in ((1, "softmax"), (2, "sigmoid")):
        answer = (await classify(client, classifier="pets", top_k=top_k, activation=activation)).json()
        assert answer["activation"] == activation
        assert len(answer["results"][0]["predictions"]) == top_k
    assert await client.metric("items_total", model="toy", kind="text") == encoded


async def test_own_templates_and_prompts_are_kept(client: Client) -> None:
    labels = ["cat", {"label": "dog", "prompts": ["a puppy", "a dog's snout"]}]
    await put(client, labels=labels, templates=["a sketch of a {label}."])
    by_name = (await classify(client, classifier="pets")).json()
    by_labels = (await classify(client, labels=labels, templates=["a sketch of a {label}."])).json()
    assert by_name["results"] == by_labels["results"]
    assert (await described(client))["total"] == 3


async def test_list_and_delete(client: Client) -> None:
    assert (await client.get("/classifiers")).json() == {"classifiers": []}
    for name in ("zebras", "ants"):
        await put(client, name)
    listed = (await client.get("/classifiers")).json()["classifiers"]
    assert [one["name"] for one in listed] == ["ants", "zebras"]
    assert listed[0] == await described(client, "ants")
    deleted = await client.delete("/classifiers/ants")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get("/classifiers/ants")).status_code == 404
    assert (await classify(client, classifier="ants")).status_code == 404
    assert (await client.delete("/classifiers/ants")).status_code == 404
    assert (await classify(client, classifier="zebras")).status_code == 200


async def test_replacing_takes_effect(client: Client) -> None:
    await put(client)
    await put(client, labels=["red", "green", "blue"])
    answer = (await classify(client, classifier="pets")).json()
    labels = {entry["label"] for entry in answer["results"][0]["predictions"]}
    assert labels == {"red", "green", "blue"}
    assert (await described(client))["labels"] == 3


async def test_a_large_one_is_built_in_the_background_with_progress(client: Client) -> None:
    made = await put(client, labels=MANY)
    assert made.status_code == 202
    assert made.json()["state"] == "building"
    assert made.json()["total"] == 700
    seen = []
    async with asyncio.timeout(20):
        while (now := await described(client))["state"] == "building":
            seen.append(now["done"])
            await asyncio.sleep(0)
    assert seen == sorted(seen)
    assert any(0 < done < 700 for done in seen)
    assert (now["state"], now["done"], now["total"]) == ("ready", 700, 700)
    answer = (await classify(client, classifier="pets", top_k=3)).json()
    reference = (await classify(client, labels=MANY, top_k=3)).json()
    assert answer["results"] == reference["results"]


async def test_while_it_is_built_the_first_time_it_is_503(client: Client) -> None:
    await put(client, labels=MANY)
    answer = await classify(client, classifier="pets")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert "classifier 'pets' is not ready: " in answer.json()["detail"]
    assert "of 700 labels are built" in answer.json()["detail"]
    await is_ready(client)


async def test_while_a_new_one_is_built_the_old_one_is_served(client: Client) -> None:
    await put(client)
    old = (await classify(client, classifier="pets")).json()
    assert (await put(client, labels=MANY)).status_code == 202
    assert (await classify(client, classifier="pets")).json() == old
    assert (await described(client))["state"] == "building"
    await is_ready(client)
    new = (await classify(client, classifier="pets")).json()
    assert len(new["results"][0]["predictions"]) == 700


async def test_while_one_for_another_model_is_built_the_old_one_keeps_its_own(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models", name="other", seed=9, dim=24)
    async with serving(tmp_path, models=("toy", "other")) as client:
        await put(client)
        old = (await classify(client, classifier="pets")).json()
        assert (await put(client, labels=MANY, model="other")).status_code == 202
        meanwhile = await classify(client, classifier="pets")
        assert meanwhile.json() == old
        await is_ready(client)
        assert (await classify(client, classifier="pets")).json()["model"] == "other"


async def test_the_last_of_several_wins_and_all_are_answered(client: Client) -> None:
    answers = await asyncio.gather(*(put(client, labels=["same", f"own {n}"]) for n in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    await is_ready(client)
    predictions = (await classify(client, classifier="pets")).json()["results"][0]["predictions"]
    assert {entry["label"] for entry in predictions} == {"same", "own 7"}


async def test_deleting_stops_the_building(client: Client) -> None:
    await put(client, labels=[f"{label} {n}" for label in MANY for n in range(10)])
    assert (await client.delete("/classifiers/pets")).status_code == 204
    assert (await client.get("/classifiers/pets")).status_code == 404
    await until(lambda: client.services.engine.model("toy").texts.waiting("bulk") == 0)
    assert (await client.get("/classifiers")).json() == {"classifiers": []}


async def test_it_must_be_asked_with_its_own_model(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models", name="other", seed=9)
    async with serving(tmp_path, models=("toy", "other")) as client:
        await put(client, model="other")
        assert (await classify(client, classifier="pets")).json()["model"] == "other"
        assert (await classify(client, classifier="pets", model="other")).status_code == 200
        wrong = await classify(client, classifier="pets", model="toy")
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
        assert "was made for model 'other'" in wrong.json()["detail"]


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        await put(client)
        before, entry = (await classify(client, classifier="pets")).json(), await described(client)
    async with serving(tmp_path) as client:
        assert await described(client) == entry
        assert (await classify(client, classifier="pets")).json() == before
        assert await client.metric("items_total", model="toy", kind="text") == 0


async def test_a_build_that_a_stop_cuts_off_goes_on_after_the_next_start(tmp_path: Path) -> None:
    labels = [f"{label} {n}" for label in MANY for n in range(6)]  # several checkpoints
    async with serving(tmp_path) as client:
        await put(client, labels=labels)
        await until(lambda: list((tmp_path / "classifiers").glob("*.partial")))
        assert (await described(client))["state"] == "building"
    kept = DirectoryStore(tmp_path / "classifiers").get_partial("pets")
    assert kept is not None
    async with serving(tmp_path) as client:
        await is_ready(client)
        encoded = await client.metric("items_total", model="toy", kind="text")
        assert encoded == len(labels) - kept.done, "what the checkpoint holds is not encoded again"
        assert not list((tmp_path / "classifiers").glob("*.partial"))
        answer = (await classify(client, classifier="pets", top_k=2)).json()
        assert answer["results"] == (await classify(client, labels=labels, top_k=2)).json()["results"]


async def test_a_model_that_changed_makes_its_classifiers_anew(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        await put(client)
        before = (await classify(client, classifier="pets")).json()
    for file in (tmp_path / "models" / "toy").iterdir():
        file.unlink()
    (tmp_path / "models" / "toy").rmdir()
    write_toy_model(tmp_path / "models", seed=99)
    async with serving(tmp_path) as client:
        await is_ready(client)
        after = (await classify(client, classifier="pets")).json()
        assert after["results"] == (await classify(client, labels=["cat", "dog"])).json()["results"]
        assert after["results"] != before["results"]


async def test_a_broken_file_hides_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        await put(client, "pets")
        await put(client, "tools")
    path = tmp_path / "classifiers" / "pets.classifier"
    path.write_bytes(path.read_bytes()[:-50])
    async with serving(tmp_path) as client:
        assert (await classify(client, classifier="tools")).status_code == 200
        broken = await classify(client, classifier="pets")
        assert (broken.status_code, broken.json()["code"]) == (507, "store_failed")
        assert (await put(client, "pets")).status_code == 200
        assert (await classify(client, classifier="pets")).status_code == 200


async def test_one_that_cannot_be_stored_is_an_error_and_the_old_one_stays(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(client)
    old = (await classify(client, classifier="pets")).json()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", full_disk)
        answer = await put(client, labels=["new"])
    assert (answer.status_code, answer.json()["code"]) == (507, "store_failed")
    assert "No space left" in answer.json()["detail"]
    assert (await classify(client, classifier="pets")).json() == old
    assert (await described(client))["state"] == "ready"

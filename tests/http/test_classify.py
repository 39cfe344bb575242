"""``POST /classify``: three body types, one answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompts.classifier import ZeroShotClassifier
from tests.apps import Client, base64, load_alone, serving
from tests.pictures import jpeg, png, truncated_jpeg
from tests.toy_models import write_toy_model

LABELS = ["cat", "dog", "a teapot"]


async def classify(client: Client, **body: Any) -> dict[str, Any]:
    answer = await client.post(
        "/classify", json={"image": {"base64": base64(png())}, "labels": LABELS} | body
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def scores(answer: dict[str, Any], index: int = 0) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer["results"][index]["predictions"]}


async def test_the_scores_are_those_of_the_model_and_its_prompts(client: Client, tmp_path: Path) -> None:
    model = load_alone(tmp_path)
    matrix = model.encode_texts([f"a photo of a {label}." for label in LABELS])
    expected = ZeroShotClassifier(
        labels=tuple(LABELS), matrix=matrix, logit_scale=20.0, logit_bias=0.0, activation="softmax"
    ).top(model.encode_images([png()]))

    answer = await classify(client)

    assert answer.keys() == {"model", "template_set", "activation", "results"}
    assert (answer["model"], answer["template_set"], answer["activation"]) == ("toy", "photo", "softmax")
    predictions = answer["results"][0]["predictions"]
    assert [entry["label"] for entry in predictions] == [LABELS[index] for index in expected.indices[0]]
    np.testing.assert_allclose([entry["score"] for entry in predictions], expected.scores[0], atol=1e-5)
    np.testing.assert_allclose(
        [entry["similarity"] for entry in predictions], expected.similarity[0], atol=1e-6
    )
    assert sum(scores(answer).values()) == pytest.approx(1, abs=1e-5)


async def test_every_body_type_gives_the_same_answer(client: Client) -> None:
    expected = await classify(client, top_k=2)
    files = [("image", ("cat.png", png(), "image/png"))]
    bodies: list[dict[str, Any]] = [
        {"files": files, "data": {"labels": LABELS, "top_k": "2"}},
        {"files": [("image", png())], "data": {"labels": LABELS, "top_k": "2", "model": "toy"}},
        {
            "content": png(),
            "headers": {"content-type": "image/png"},
            "params": {"labels": LABELS, "top_k": "2"},
        },
        {
            "content": png(),
            "headers": {"content-type": "application/octet-stream"},
            "params": {"labels": LABELS, "top_k": "2"},
        },
        {"json": {"images": [{"base64": base64(png())}], "labels": LABELS, "top_k": 2}},
        {
            "json": {
                "image": {"base64": "data:image/png;base64," + base64(png())},
                "labels": LABELS,
                "top_k": 2,
            }
        },
    ]
    for body in bodies:
        answer = await client.post("/classify", **body)
        assert answer.json() == expected, body


async def test_predictions_are_sorted_and_cut_to_top_k(client: Client) -> None:
    everything = [entry["score"] for entry in (await classify(client))["results"][0]["predictions"]]
    assert everything == sorted(everything, reverse=True)
    for top_k, count in ((1, 1), (2, 2), (3, 3), (99, 3)):
        cut = (await classify(client, top_k=top_k))["results"][0]["predictions"]
        assert [entry["score"] for entry in cut] == everything[:count]


async def test_several_pictures_are_answered_in_their_order(client: Client) -> None:
    pictures = [png(seed) for seed in range(5)]
    alone = [scores(await classify(client, image={"base64": base64(one)})) for one in pictures]
    assert len({tuple(sorted(one.items())) for one in alone}) == 5
    many = await classify(client, image=None, images=[{"base64": base64(one)} for one in pictures])
    assert [result["index"] for result in many["results"]] == list(range(5))
    for index, one in enumerate(alone):
        assert scores(many, index) == pytest.approx(one, abs=1e-5)
    form = await client.post("/classify", files=[("image", one) for one in pictures], data={"labels": LABELS})
    for index, one in enumerate(alone):
        assert scores(form.json(), index) == pytest.approx(one, abs=1e-5)


async def test_one_bad_picture_of_several_is_an_error_in_its_place(client: Client) -> None:
    sources = [
        {"base64": base64(png())},
        {"base64": base64(truncated_jpeg())},
        {"base64": base64(b"hello, I am a text")},
        {"base64": "***"},
        {"url": "http://example.invalid/cat.jpg"},
        {"embedding": [1.0, 2.0]},
        {"base64": base64(png())},
    ]
    answer = await classify(client, image=None, images=sources)
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [
        None,
        "invalid_image",
        "unsupported_image_format",
        "invalid_request",
        "url_forbidden",
        "invalid_request",
        None,
    ]
    assert [result["index"] for result in answer["results"]] == list(range(7))
    assert scores(answer, 0) == scores(answer, 6)
    assert "images[3].base64: is not base64" in answer["results"][3]["error"]["message"]
    assert "2 numbers, the model's has 48" in answer["results"][5]["error"]["message"]


@pytest.mark.parametrize("as_base64", [False, True])
async def test_an_embedding_is_scored_without_being_encoded_again(client: Client, as_base64: bool) -> None:
    encoding = "base64" if as_base64 else "float"
    embedded = await client.post(
        "/embed", json={"inputs": [{"image": {"base64": base64(png())}}], "encoding": encoding}
    )
    embedding = embedded.json()["embeddings"][0]["embedding"]
    expected = await classify(client)
    before = await client.metric("batch_size_sum", model="toy", encoder="image")
    answer = await classify(client, image={"embedding": embedding})
    assert await client.metric("batch_size_sum", model="toy", encoder="image") == before
    assert scores(answer) == pytest.approx(scores(expected), abs=1e-6)


async def test_an_embedding_of_any_length_is_brought_to_length_one(client: Client) -> None:
    vector = np.random.default_rng(3).standard_normal(48)
    expected = scores(await classify(client, image={"embedding": vector.tolist()}))
    for scale in (1e-30, 1e-3, 1e3, 1e30):
        scaled = scores(await classify(client, image={"embedding": (scale * vector).tolist()}))
        assert scaled == pytest.approx(expected, abs=1e-5), scale


@pytest.mark.parametrize(
    ("embedding", "says"),
    [
        ([0.0] * 48, "not all zero"),
        ([], "not all zero"),
        ([1e300] * 47 + [math.inf], "finite"),
        ("AAAA", "3 bytes"),
        ("%%%", "not base64"),
    ],
)
async def test_an_embedding_that_is_none_is_refused(client: Client, embedding: Any, says: str) -> None:
    import json

    body = json.dumps({"image": {"embedding": embedding}, "labels": LABELS})
    answer = await client.post("/classify", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_request"
    assert says in answer.json()["detail"]
    assert "embedding" in answer.json()["detail"]


async def test_sigmoid_scores_each_label_by_itself(client: Client) -> None:
    answer = await classify(client, activation="sigmoid")
    assert answer["activation"] == "sigmoid"
    for entry in answer["results"][0]["predictions"]:
        assert entry["score"] == pytest.approx(1 / (1 + math.exp(-20 * entry["similarity"])), abs=1e-5)


async def test_the_manifest_decides_how_a_model_scores(tmp_path: Path) -> None:
    write_toy_model(
        tmp_path / "models", name="siglip", logit_scale=5.0, logit_bias=-2.0, activation="sigmoid"
    )
    async with serving(tmp_path, models=("toy", "siglip")) as client:
        answer = await classify(client, model="siglip")
        assert answer["activation"] == "sigmoid"
        for entry in answer["results"][0]["predictions"]:
            expected = 1 / (1 + math.exp(2 - 5 * entry["similarity"]))
            assert entry["score"] == pytest.approx(expected, abs=1e-5)


async def test_templates_make_the_ensemble(client: Client, tmp_path: Path) -> None:
    templates = ["a sketch of a {label}.", "{label}!"]
    answer = await classify(client, templates=templates)
    assert answer["template_set"] == "custom"
    one_by_one = [await classify(client, templates=[template]) for template in templates]
    prompts = [
        {"label": label, "prompts": [template.replace("{label}", label) for template in templates]}
        for label in LABELS
    ]
    own = await classify(client, labels=prompts)
    assert scores(own) == pytest.approx(scores(answer), abs=1e-6)
    assert all(scores(one) != pytest.approx(scores(answer), abs=1e-4) for one in one_by_one)
    named = await classify(client, template_set="openai-simple")
    assert named["template_set"] == "openai-simple"
    assert scores(named) != pytest.approx(scores(answer), abs=1e-4)


async def test_labels_with_and_without_prompts_mix(client: Client) -> None:
    answer = await classify(client, labels=["cat", {"label": "dog", "prompts": ["a puppy", "a dog's snout"]}])
    assert scores(answer).keys() == {"cat", "dog"}
    plain = await classify(client, labels=["cat", "dog"])
    similarity = {entry["label"]: entry["similarity"] for entry in answer["results"][0]["predictions"]}
    reference = {entry["label"]: entry["similarity"] for entry in plain["results"][0]["predictions"]}
    assert similarity["cat"] == pytest.approx(reference["cat"], abs=1e-6)
    assert similarity["dog"] != pytest.approx(reference["dog"], abs=1e-4)


async def test_labels_come_back_as_they_were_given(client: Client) -> None:
    labels = ["Кот", "猫", "chat noir ", "a\tb", "🐈", "x" * 4096, '"quoted"', "<b>"]
    assert scores(await classify(client, labels=labels)).keys() == set(labels)


async def test_one_label_is_certain(client: Client) -> None:
    assert scores(await classify(client, labels=["cat"])) == {"cat": 1.0}


async def test_a_jpeg_is_nearly_its_png(client: Client) -> None:
    of_png = scores(await classify(client))
    of_jpeg = scores(await classify(client, image={"base64": base64(jpeg())}))
    assert of_jpeg == pytest.approx(of_png, abs=0.1)


async def test_several_models_answer_by_name(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models", name="other", seed=9, dim=24)
    async with serving(tmp_path, models=("toy", "other")) as client:
        default, toy = await classify(client), await classify(client, model="toy")
        other = await classify(client, model="other")
        assert default == toy
        assert other["model"] == "other"
        assert scores(other) != pytest.approx(scores(toy), abs=1e-4)
        again = await classify(client, model="toy")
        assert again == toy, "the other model's class embeddings are kept apart"


# The caches


async def test_the_second_request_with_the_same_labels_encodes_no_text(client: Client) -> None:
    await classify(client)
    encoded = await client.metric("items_total", model="toy", kind="text")
    assert encoded == len(LABELS)
    for labels in (LABELS, LABELS[::-1], LABELS[1:]):
        await classify(client, labels=labels)
    assert await client.metric("items_total", model="toy", kind="text") == encoded
    assert await client.metric("cache_events_total", cache="matrix", event="hit") == 1
    assert await client.metric("cache_events_total", cache="class", event="hit") == 5
    assert await client.metric("cache_events_total", cache="class", event="miss") == 3
    assert await client.metric("cache_bytes", cache="class") > 3 * 48 * 4


async def test_lists_that_overlap_share_their_work(client: Client) -> None:
    await classify(client, labels=["a", "b", "c"])
    await classify(client, labels=["b", "c", "d"])
    assert await client.metric("items_total", model="toy", kind="text") == 4


async def test_the_caches_keep_template_sets_apart(client: Client) -> None:
    photo = await classify(client)
    await classify(client, template_set="openai-simple")
    assert await client.metric("items_total", model="toy", kind="text") == 3 + 3 * 7
    assert await classify(client) == photo


async def test_a_server_without_caches_answers_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path, class_cache_bytes=0, matrix_cache_bytes=0) as client:
        assert await classify(client) == await classify(client)
        assert await client.metric("items_total", model="toy", kind="text") == 6
        assert await client.metric("cache_bytes", cache="class") == 0


async def test_a_long_list_of_labels_is_built_in_the_bulk_lane_and_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, background_prompts=10, max_queue=4) as client:
        labels = [f"thing {number}" for number in range(200)]
        answer = await classify(client, labels=labels, top_k=3)
        assert len(answer["results"][0]["predictions"]) == 3


async def test_more_labels_than_queue_places_are_no_overload(tmp_path: Path) -> None:
    async with serving(tmp_path, max_queue=4) as client:
        labels = [f"thing {number}" for number in range(50)]
        assert len(scores(await classify(client, labels=labels))) == 50


async def test_an_answer_without_measure_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    images, labels = [{"base64": base64(png())}] * 4, [f"label {number}" for number in range(50)]
    async with serving(tmp_path, max_predictions=150) as client:

        async def ask(**options: Any) -> Any:
            return await client.post("/classify", json={"labels": labels, "images": images} | options)

        refused = await ask()
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        assert "top_k: the answer would have 200 predictions, at most 150" in refused.json()["detail"]
        assert await client.metric("items_total", model="toy", kind="image") == 0
        assert (await ask(images=images[:3])).status_code == 200
        assert (await ask(top_k=37)).status_code == 200
        assert (await ask(top_k=38)).status_code == 413
        await client.put("/classifiers/many", json={"labels": labels})
        named = {"classifier": "many", "images": images}
        assert (await client.post("/classify", json=named)).status_code == 413


async def test_what_is_scored_in_a_thread_is_scored_alike(client: Client) -> None:
    labels, image = [f"label {number}" for number in range(4000)], {"base64": base64(png())}
    few = (await client.post("/classify", json={"labels": labels, "image": image})).json()
    many = (await client.post("/classify", json={"labels": labels, "images": [image] * 2})).json()
    one, *both = [
        {prediction["label"]: prediction["similarity"] for prediction in result["predictions"]}
        for result in few["results"] + many["results"]
    ]
    assert len(one) == len(labels)
    assert both == [pytest.approx(one, abs=1e-6)] * 2

"""``huggingface_hub.InferenceClient`` against a real server."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from service.keys import new_key
from tests.pictures import png, truncated_jpeg
from tests.server import Server, running_server
from tests.toy_models import write_toy_model

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*-*.*"))
LABELS = [path.stem.replace("-", " ") for path in SAMPLES]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("hugging-face"), models="shapes", runtime="auto") as server:
        yield server


@pytest.fixture(params=["", "/", "/models/shapes"])
def client(server: Server, request: pytest.FixtureRequest) -> InferenceClient:
    return InferenceClient(model=f"{server.url()}{request.param}", token="none")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_shows_what_it_is_called(client: InferenceClient, sample: Path) -> None:
    scores = client.zero_shot_image_classification(sample, candidate_labels=LABELS)
    assert scores[0].label == sample.stem.replace("-", " ")
    assert [one.score for one in scores] == sorted((one.score for one in scores), reverse=True)
    assert {one.label for one in scores} == set(LABELS)
    assert sum(one.score for one in scores) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("template", [None, "a drawing of a {}.", "{} or another {}"])
def test_scores_are_those_of_classify(server: Server, client: InferenceClient, template: str | None) -> None:
    sample = SAMPLES[0]
    answers = [
        client.zero_shot_image_classification(form, candidate_labels=LABELS, hypothesis_template=template)
        for form in (sample, str(sample), sample.read_bytes())
    ]
    wanted = {"image": {"base64": b64encode(sample.read_bytes()).decode()}, "labels": LABELS}
    if template is not None:
        wanted["templates"] = [template.replace("{}", "{label}")]
    answer = httpx.post(f"{server.url()}/classify", json=wanted).json()
    best = [(one["label"], one["score"]) for one in answer["results"][0]["predictions"]]
    for scores in answers:
        assert [one.label for one in scores] == [label for label, _ in best]
        assert [one.score for one in scores] == pytest.approx([score for _, score in best], abs=1e-6)


def test_errors_tell_what_is_wrong(server: Server, client: InferenceClient) -> None:
    ask = client.zero_shot_image_classification
    with pytest.raises(HfHubHTTPError, match=r"hypothesis_template: must contain \{\}"):
        ask(png(), candidate_labels=["a", "b"], hypothesis_template="a photo")
    with pytest.raises(HfHubHTTPError, match="truncated"):
        ask(truncated_jpeg(), candidate_labels=["a", "b"])
    with pytest.raises(HfHubHTTPError, match=r"labels\[1\]"):
        ask(png(), candidate_labels=["a", "a"])
    with pytest.raises(HfHubHTTPError, match="'clip' is loaded; loaded models: shapes") as unknown:
        ask(png(), candidate_labels=["a", "b"], model=f"{server.url()}/models/clip")
    assert unknown.value.response.status_code == 404


def test_its_token_is_the_servers_key(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models")
    key, entry = new_key("shop")
    with running_server(tmp_path, api_keys=entry) as server:
        with pytest.raises(HfHubHTTPError) as refused:
            InferenceClient(model=server.url(), token="wrong").zero_shot_image_classification(
                png(), ["a", "b"]
            )
        assert refused.value.response.status_code == 401
        client = InferenceClient(model=server.url(), token=key)
        assert len(client.zero_shot_image_classification(png(), ["a", "b"])) == 2

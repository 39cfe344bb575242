"""The ``openai`` package against a real server: the same embeddings as ``/embed``, errors it understands."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tokenizers

from models import shapes
from service.keys import new_key
from tests.pictures import truncated_jpeg
from tests.server import Server, running_server
from tests.toy_models import write_toy_model

FILES = Path(shapes.__file__).parent / "files"
SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*-*.*"))
LABELS = [path.stem.replace("-", " ") for path in SAMPLES]
TEXTS = ["a red circle", "a small blue star", "", "Ünïcode ⭐ &amp; more", "word " * 100]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("openai"), models="shapes", runtime="auto") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client


def openai_client(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url()}/v1", api_key=key, max_retries=0)


def data_uri(picture: Path) -> str:
    kind = picture.suffix.removeprefix(".").replace("jpg", "jpeg")
    return f"data:image/{kind};base64,{b64encode(picture.read_bytes()).decode()}"


def embedded(server: Server, *inputs: dict[str, Any]) -> np.ndarray:
    """What ``/embed`` says of the same inputs, float32 (N, D)."""
    accept = {"accept": "application/x-npy"}
    answer = httpx.post(f"{server.url()}/embed", json={"inputs": inputs}, headers=accept)
    assert answer.status_code == 200, answer.text
    return np.asarray(np.load(io.BytesIO(answer.content)))


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], np.float32)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_are_embedded_to_the_last_bit_as_embed_does(
    server: Server, client: openai.OpenAI, options: dict[str, Any]
) -> None:
    answer = client.embeddings.create(model="shapes", input=TEXTS, **options)
    if options.get("encoding_format") != "base64":
        assert same_bits(vectors(answer), embedded(server, *({"text": text} for text in TEXTS)))
    else:  # asked for by name, the client hands it on as it came
        rows = np.array([np.frombuffer(b64decode(str(one.embedding)), "<f4") for one in answer.data])
        assert same_bits(rows, embedded(server, *({"text": text} for text in TEXTS)))
    alone = client.embeddings.create(model="shapes", input=TEXTS[1])
    assert same_bits(vectors(alone), embedded(server, {"text": TEXTS[1]}))
    assert (answer.object, answer.model) == ("list", "shapes")


def test_the_client_asks_for_base64_and_decodes_it(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="shapes", input="a red circle")
    assert isinstance(raw.http_response.json()["data"][0]["embedding"], str)
    assert isinstance(raw.parse().data[0].embedding[0], float)


def test_usage_counts_the_tokens_that_were_read(client: openai.OpenAI) -> None:
    backend = tokenizers.Tokenizer.from_file(str(FILES / "tokenizer.json"))
    expected = [min(len(backend.encode(text).ids), 32) for text in ("a red circle", "word " * 100)]
    usage = client.embeddings.create(model="shapes", input=["a red circle", "word " * 100]).usage
    assert expected[1] == 32
    assert usage.prompt_tokens == usage.total_tokens == sum(expected)


def test_token_arrays_are_the_texts_they_came_from(server: Server, client: openai.OpenAI) -> None:
    backend = tokenizers.Tokenizer.from_file(str(FILES / "tokenizer.json"))
    whole = [backend.encode(text).ids for text in ("a red circle", "word " * 100)]
    bare = [backend.encode(text, add_special_tokens=False).ids for text in ("a red circle", "word " * 100)]
    expected = embedded(server, {"text": "a red circle"}, {"text": "word " * 100})
    for tokens in (whole, bare):
        answer = client.embeddings.create(model="shapes", input=tokens)
        assert same_bits(vectors(answer), expected)
    alone = client.embeddings.create(model="shapes", input=bare[0])
    assert same_bits(vectors(alone), embedded(server, {"text": "a red circle"}))
    assert alone.usage.prompt_tokens == len(whole[0])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_data_uri_finds_its_words(server: Server, client: openai.OpenAI, sample: Path) -> None:
    answer = client.embeddings.create(
        model="shapes", input=data_uri(sample), extra_body={"modality": "image"}
    )
    picture = vectors(answer)
    base64 = b64encode(sample.read_bytes()).decode()
    assert same_bits(picture, embedded(server, {"image": {"base64": base64}}))
    texts = vectors(client.embeddings.create(model="shapes", input=[f"a {label}" for label in LABELS]))
    assert LABELS[int((texts @ picture[0]).argmax())] == sample.stem.replace("-", " ")
    assert answer.usage.total_tokens == 0


def test_texts_and_pictures_mix_as_typed_items(server: Server, client: openai.OpenAI) -> None:
    base64 = b64encode(SAMPLES[0].read_bytes()).decode()
    items: Any = [{"text": LABELS[0]}, {"image": data_uri(SAMPLES[0])}, {"image": base64}, LABELS[1]]
    rows = vectors(client.embeddings.create(model="shapes", input=items))
    picture = {"image": {"base64": base64}}
    expected = embedded(server, {"text": LABELS[0]}, picture, picture, {"text": LABELS[1]})
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert rows[0] @ rows[1] > rows[3] @ rows[1]


def test_models_are_listed(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == ("shapes", "model")
    assert client.models.retrieve("shapes") == listed
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    create = client.embeddings.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="text-embedding-3-small", input="a")
    assert unknown.value.code == "unknown_model"
    assert "loaded models: shapes" in unknown.value.message
    assert create(model="shapes", input="a", dimensions=128).data
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions: must be 128") as wrong:
        create(model="shapes", input="a", dimensions=64)
    assert wrong.value.type == "invalid_request_error"
    broken = b64encode(truncated_jpeg()).decode()
    items: Any = [{"text": "fine"}, {"image": broken}]
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\[1\]: ") as bad:
        create(model="shapes", input=items)
    assert bad.value.code == "invalid_image"
    with pytest.raises(openai.APIStatusError, match="at most 128 are allowed") as many:
        create(model="shapes", input=["a"] * 129)
    assert many.value.status_code == 413
    with pytest.raises(openai.UnprocessableEntityError) as stray:
        create(model="shapes", input=[[10**6]])
    assert stray.value.code == "unknown_token"
    with pytest.raises(openai.NotFoundError, match="no such endpoint"):
        client.chat.completions.create(model="shapes", messages=[{"role": "user", "content": "hello"}])


def test_its_api_key_is_the_servers(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models")
    key, entry = new_key("shop")
    with running_server(tmp_path, api_keys=entry, rate_limit=0.01, rate_burst=1) as server:
        with openai_client(server, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with openai_client(server, key) as client:
            assert client.embeddings.create(model="toy", input="a").data
            with pytest.raises(openai.RateLimitError) as limited:
                client.embeddings.create(model="toy", input="a")
        assert limited.value.code == "rate_limited"
        assert int(limited.value.response.headers["retry-after"]) >= 1

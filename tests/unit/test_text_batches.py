"""Grouping texts by length changes what is run, never what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.manifest import TextSpec
from models.runtimes import LENGTH_STEP as STEP
from models.text_batches import cheapest_runs, encode_tokens
from models.tokenizer import Tokenizer

_CONTEXT = 20
_EMPTY_BPE = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}


class CountingSession:
    """Gives the sum and the number of a sequence's non-padding ids; remembers the shapes it was given."""

    runtime, provider, precision, slots, best_batch, company = "counting", "cpu", "fp32", 1, None, 1
    buckets: tuple[int, ...] = ()
    length_step = STEP

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, batch: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(batch.shape)
        return np.stack([batch.sum(axis=1), (batch != 0).sum(axis=1)], axis=1).astype(np.float32)

    def warm_up(self, batch: NDArray[np.int64]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(_EMPTY_BPE))
    return Tokenizer(path, TextSpec(context_length=_CONTEXT, pad_token=0, dynamic_length=True))


sequences = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=_CONTEXT).map(lambda ids: np.array(ids, np.int64)),
    min_size=1,
    max_size=40,
)


@given(tokens=sequences)
def test_every_sequence_gets_its_own_features(tokenizer: Tokenizer, tokens: list[NDArray[np.int64]]) -> None:
    features = encode_tokens(CountingSession(), tokenizer, tokens)
    assert features.tolist() == [[ids.sum(), len(ids)] for ids in tokens]


@given(tokens=sequences)
def test_few_shapes_and_no_sequence_twice(tokenizer: Tokenizer, tokens: list[NDArray[np.int64]]) -> None:
    session = CountingSession()
    encode_tokens(session, tokenizer, tokens)
    assert sum(rows for rows, _ in session.shapes) == len({ids.tobytes() for ids in tokens})
    lengths = [length for _, length in session.shapes]
    assert len(lengths) == len(set(lengths))
    assert all(length % STEP == 0 or length == _CONTEXT for length in lengths)


def test_no_texts_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="there are none"):
        encode_tokens(CountingSession(), tokenizer, [])


def test_a_long_text_does_not_make_many_short_ones_long() -> None:
    assert list(cheapest_runs([8] * 20 + [76])) == [(0, 20), (20, 21)]


def test_a_few_texts_are_not_worth_a_run_of_their_own() -> None:
    assert list(cheapest_runs([8, 8, 12, 16])) == [(0, 4)]


@given(lengths=st.lists(st.integers(1, 19).map(lambda steps: steps * STEP), max_size=60).map(sorted))
def test_the_runs_hold_every_text_once_and_cost_no_more_than_one_run(lengths: list[int]) -> None:
    runs = list(cheapest_runs(lengths))
    assert [place for start, end in runs for place in range(start, end)] == list(range(len(lengths)))
    cost = sum((end - start) * lengths[end - 1] for start, end in runs)
    assert cost <= len(lengths) * max(lengths, default=0)

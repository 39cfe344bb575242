"""Cutting, padding, counting and cleaning, on a small tokenizer made here; no torch."""

import html
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models as token_models
from tokenizers import pre_tokenizers, processors

from models.errors import ManifestError, UnknownTokenError
from models.manifest import TextSpec
from models.tokenizer import Tokenizer, _repair

PAD, START, END, UNKNOWN = range(4)
WORDS = {
    "<pad>": PAD,
    "<s>": START,
    "</s>": END,
    "?": UNKNOWN,
    "a": 4,
    "red": 5,
    "circle": 6,
    "it": 7,
    "s": 8,
}

Make = Callable[..., Tokenizer]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = tokenizers.Tokenizer(token_models.WordLevel(WORDS, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="module")
def make(file: Path) -> Make:
    def tokenizer(**fields: object) -> Tokenizer:
        facts = {"context_length": 6, "pad_token": PAD, "end_token": END, **fields}
        return Tokenizer(file, TextSpec.model_validate(facts))

    return tokenizer


def test_ids_are_padded_to_the_context(make: Make) -> None:
    (text,) = make()(["A  red\n"])
    assert text.ids.tolist() == [START, 4, 5, END, PAD, PAD]
    assert text.ids.dtype == np.int64
    assert not text.truncated


def test_dynamic_length_leaves_the_padding_out(make: Make) -> None:
    texts = make(dynamic_length=True)(["a red circle", ""])
    assert [text.ids.tolist() for text in texts] == [[START, 4, 5, 6, END], [START, END]]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    "given",
    [[4, 5], [START, 4, 5], [4, 5, END], [START, 4, 5, END], [START, 4, 5, END, PAD, PAD, PAD]],
)
def test_ids_given_back_are_the_text_they_came_from(make: Make, given: list[int], dynamic: bool) -> None:
    tokenizer = make(dynamic_length=dynamic)
    (text,), again = tokenizer(["a red"]), tokenizer.from_ids(given)
    assert again.ids.tolist() == text.ids.tolist()
    assert (again.count, again.truncated) == (text.count, text.truncated) == (4, False)


def test_too_many_ids_are_cut_like_the_text(make: Make) -> None:
    (text,), again = make()(["a red a red circle"]), make().from_ids([4, 5, 4, 5, 6])
    assert again.ids.tolist() == text.ids.tolist()
    assert (again.count, again.truncated) == (text.count, text.truncated) == (6, True)


def test_an_end_token_may_be_the_padding_too(make: Make) -> None:
    tokenizer = make(pad_token=END)
    for ids in ([START, 4, 5, END, END, END], [4, 5, END], [4, 5]):
        assert tokenizer.from_ids(ids).ids.tolist() == tokenizer(["a red"])[0].ids.tolist()


def test_what_looks_like_padding_is_text_where_no_end_token_is_before_it(make: Make) -> None:
    tokenizer = make(pad_token=4)
    assert tokenizer.from_ids([5, 4]).count == 4
    assert tokenizer.from_ids([5, 4, END, 4]).count == 4


def test_no_ids_are_the_empty_text(make: Make) -> None:
    assert make().from_ids([]).ids.tolist() == make()([""])[0].ids.tolist()


@pytest.mark.parametrize("unknown", [-1, 9, 2**40])
def test_an_id_that_no_text_has_is_refused(make: Make, unknown: int) -> None:
    with pytest.raises(UnknownTokenError, match=f"{unknown} is none of the model's 9 token ids"):
        make().from_ids([4, unknown])


@pytest.mark.parametrize("dynamic", [True, False])
def test_truncation_keeps_the_end_token_last(make: Make, dynamic: bool) -> None:
    fits, too_long = make(dynamic_length=dynamic)(["a red a red", "a red a red circle"])
    assert fits.ids.tolist() == too_long.ids.tolist() == [START, 4, 5, 4, 5, END]
    assert (fits.truncated, too_long.truncated) == (False, True)


def test_without_an_end_token_the_tail_is_simply_cut(make: Make) -> None:
    (text,) = make(end_token=None)(["a red a red circle"])
    assert text.ids.tolist() == [START, 4, 5, 4, 5, 6]


def test_count_is_of_the_whole_text(make: Make) -> None:
    tokenizer = make()
    assert tokenizer.count("") == 2
    assert tokenizer.count("a red circle " * 100) == 302


def test_pad_stacks_to_the_longest(make: Make) -> None:
    tokenizer = make(dynamic_length=True, pad_token=9)
    batch = tokenizer.pad([text.ids for text in tokenizer(["a red circle", "a"])])
    assert batch.tolist() == [[START, 4, 5, 6, END], [START, 4, END, 9, 9]]
    assert batch.dtype == np.int64
    assert tokenizer.pad([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [
        ("none", [START, UNKNOWN, 7, UNKNOWN, 8, END]),  # RED it ' s
        ("whitespace", [START, UNKNOWN, 7, UNKNOWN, 8, END]),
        ("lower", [START, 5, 7, UNKNOWN, 8, END]),
        ("canonicalize", [START, 5, UNKNOWN, END]),  # red its
    ],
)
def test_cleanings(make: Make, cleaning: str, expected: list[int]) -> None:
    (text,) = make(cleaning=cleaning, dynamic_length=True)([" RED \t it's "])
    assert text.ids.tolist() == expected


def test_entities_and_mojibake_are_mended_unless_cleaning_is_none(make: Make) -> None:
    assert make().count("caf&amp;eacute;") == make().count("cafÃ©") == 3
    assert make(cleaning="none").count("caf&eacute;") == 6  # caf & eacute ;


@pytest.mark.parametrize("cleaning", ["none", "whitespace", "lower", "canonicalize"])
def test_half_a_surrogate_pair_is_no_accident(make: Make, cleaning: str) -> None:
    (text,) = make(cleaning=cleaning, dynamic_length=True)(["a \ud800 red"])
    assert text.ids.tolist()[:2] == [START, 4]
    assert text.ids.tolist()[-2:] == [5, END]


@given(st.text(st.characters(max_codepoint=0x17F)))
def test_the_short_cut_for_plain_text_changes_nothing(text: str) -> None:
    assert _repair(text) == html.unescape(html.unescape(ftfy.fix_text(text))).strip()


@given(st.text(st.sampled_from("ab &;#x<>'\"`\\~-=_\x1b\r\x7f0")))
def test_the_short_cut_for_plain_text_changes_nothing_in_markup(text: str) -> None:
    assert _repair(text) == html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def test_threads_share_one_tokenizer(make: Make) -> None:
    tokenizer = make(dynamic_length=True)
    texts = ["a " * count for count in range(12)]
    alone = [text.ids.tolist() for text in tokenizer(texts)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: tokenizer([texts[index % 12]])[0].ids.tolist(), range(480)))
    assert together == alone * 40


@pytest.mark.parametrize(
    "text", ["a red circle " * 80_000, "é" * 1_000_000, "a" * 1_000_000, "&amp;" * 200_000]
)
def test_a_megabyte_is_not_quadratic(make: Make, text: str) -> None:
    tokenizer = make()
    begin = time.process_time()
    (tokenized,) = tokenizer([text])
    assert time.process_time() - begin < 10
    assert tokenized.ids.shape == (6,)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read tokenizer\.json \(No such file"):
        Tokenizer(tmp_path / "tokenizer.json", TextSpec(context_length=6))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"model": {"type": "Telepathy"}}', b"\xff\xfe\x00", b"[1, 2"]
)
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"tokenizer\.json is no tokenizer file"):
        Tokenizer(path, TextSpec(context_length=6))

# ruff: noqa: RUF001 (texts are awkward on purpose)
"""Token ids are open_clip's, for its own tokenizer and for those it takes from the Hugging Face hub."""

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from models.errors import ExportError
from models.manifest import TextSpec
from models.tokenizer import Tokenizer
from models.tokenizer_files import write_tokenizer

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer", reason="parity needs the extra `export`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `export`")

CLEANINGS = ("lower", "whitespace", "canonicalize")
AWKWARD = [
    "",
    " ",
    "\t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000",
    "a photo of a cat.",
    "A PHOTO   of\na\tCAT!!!",
    "it's I'm you're we've they'll he'd don't 'S 'T 'RE 'ſ ''s '' ' 's's",
    "3.14159 1,000,000 ½ ² Ⅷ ٣ 一二三 1st 2nd",
    "under_score snake_case __init__ C++ C# .NET e-mail@example.com https://x.y/z?q=1&r=2#f",
    "&amp; &lt;b&gt; &amp;amp; &amp;lt; &#39; &#x1F600; &nbsp; &copy &notanentity; &",
    "<end_of_text>",
    "<start_of_text>a<end_of_text>",
    "!!<end_of_text> <END_OF_TEXT> <end_of_text><start_of_text>!<end_of_text>!!",
    "<|endoftext|> </w> Ġ Ċ </s> [SEP] [CLS] [PAD] <pad> <unk> <s>",
    "donâ€™t stop the schÃ¶n naÃ¯vetÃ© â€œquotesâ€\x9d",
    "“curly” ‘quotes’ — dash – … ﬁ ﬂ ﬆ Ǆ ǅ",
    "Straße İstanbul ıI ΣΊΣΥΦΟΣ ΌΣΟΣ ǅ ẞ ſ K Å",
    "e\u0301 é n\u0303 \u0345 α\u0345 \u0301alone a\u0300\u0301\u0302\u0303",
    "日本語 한국어 中文 ไทย हिन्दी العربية עברית ქართული Ελληνικά кириллица",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☺️ ❤ #️⃣ 🫠",
    "\u200b\u200c\u200d\u2060\ufeff\u202e\u00ad",
    "\x00\x01\x07\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ud800 \udfff \ud83d\ude00",
    "\ufffe\uffff\U0010ffff\U000e0001\ue000",
    "ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ",
    "\U00011de0\U000323b0\u088f\u0c5c",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "a" * 5000,
    "ab " * 100,
    "word " * 74 + "end",
    "word " * 75 + "end",
    "word " * 76 + "end",
    "!" * 300,
    "🦄" * 100,
    "supercalifragilisticexpialidocious" * 20,
]

SCRIPTS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x61, 0x7A), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F),
    (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xE7F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF),
    (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFFD), (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF), (0x0, 0x1F), (0x7F, 0x9F), (0x300, 0x36F), (0x20000, 0x3FFFF), (0x0, 0xD7FF),
]  # fmt: skip
FRAGMENTS = [
    "<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "'s", "'LL", "'ſ", "&amp;", "&lt;", "&#233;",
    "&eacute;", "Ã©", "â€™", "\u200d", "\ufe0f", "👩‍🚀", "a photo of a ", " cat", "_", "...", "</w>", "  ",
    "\n", "\u0345",
]  # fmt: skip


def mixtures(count: int, seed: int) -> Iterable[str]:
    """Strings that mix scripts, emoji, entities, mojibake, control characters and special strings."""
    rng = random.Random(seed)
    for _ in range(count):
        pieces = []
        for _ in range(rng.choice((1, 2, 3, 5, 8, 30))):
            if rng.random() < 0.35:
                pieces.append(rng.choice(FRAGMENTS))
            else:
                low, high = rng.choice(SCRIPTS)
                pieces.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
        yield "".join(pieces)


def assert_same_ids(reference: Callable[[list[str]], Any], ours: Tokenizer, texts: Sequence[str]) -> None:
    expected = reference(list(texts)).numpy()
    found = ours.pad([text.ids for text in ours(texts)])
    wrong = np.flatnonzero((expected != found).any(axis=1))
    assert not wrong.size, f"{texts[wrong[0]]!r}: {found[wrong[0]]} instead of {expected[wrong[0]]}"


@pytest.fixture(scope="module", params=CLEANINGS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    reference = open_clip_tokenizer.SimpleTokenizer(clean=request.param)
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    spec = write_tokenizer(reference, path)
    assert spec == TextSpec(context_length=77, cleaning=request.param, pad_token=0, end_token=49407)
    return reference, Tokenizer(path, spec)


def test_awkward_texts(clip: tuple[Any, Tokenizer]) -> None:
    assert_same_ids(*clip, AWKWARD)


def test_five_thousand_mixtures(clip: tuple[Any, Tokenizer]) -> None:
    assert_same_ids(*clip, list(mixtures(5_000, seed=sum(clip[0].clean_fn.__name__.encode()))))


def test_every_character(tmp_path: Path) -> None:
    """Each code point between letters, packed so that every one of them is inside the context."""
    reference = open_clip_tokenizer.SimpleTokenizer(clean="whitespace")
    path = tmp_path / "tokenizer.json"
    ours = Tokenizer(path, write_tokenizer(reference, path))
    step = 12
    points = [point for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(f"a{chr(point)}" for point in points[i : i + step]) for i in range(0, len(points), step)]
    assert_same_ids(reference, ours, texts)


def test_special_strings_in_every_company(clip: tuple[Any, Tokenizer]) -> None:
    pieces = ("<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "!", "'s", "<", ">", "a", " ", "1", "'")
    texts = [a + b + c for a in pieces for b in pieces for c in pieces]
    assert_same_ids(*clip, texts)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text(clip: tuple[Any, Tokenizer], text: str) -> None:
    assert_same_ids(*clip, [text])


def test_open_clips_own_ids_are_the_text_they_came_from(clip: tuple[Any, Tokenizer]) -> None:
    reference, ours = clip
    texts = [*AWKWARD, *mixtures(500, seed=7)]
    for text, ids, tokenized in zip(texts, reference(texts).tolist(), ours(texts), strict=True):
        again = ours.from_ids(ids)
        assert (again.ids.tolist(), again.count) == (tokenized.ids.tolist(), tokenized.count), text


def test_count_is_open_clips(clip: tuple[Any, Tokenizer]) -> None:
    reference, ours = clip
    for text in ("", "a photo of a cat", "word " * 300):
        assert ours.count(text) == len(reference.encode(text)) + 2


def test_shorter_context(tmp_path: Path) -> None:
    reference = open_clip_tokenizer.SimpleTokenizer(context_length=9)
    path = tmp_path / "tokenizer.json"
    assert_same_ids(reference, Tokenizer(path, write_tokenizer(reference, path)), AWKWARD)


def test_what_the_file_cannot_say_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ExportError, match="<pet>"):
        write_tokenizer(open_clip_tokenizer.SimpleTokenizer(additional_special_tokens=["<pet>"]), path)
    with pytest.raises(ExportError, match="reduction_mask"):
        write_tokenizer(open_clip_tokenizer.SimpleTokenizer(reduction_mask="random"), path)


# --- tokenizers of the Hugging Face hub, trained here on these very texts -------------------------------


def trained(backend: tokenizers.Tokenizer, trainer: Any) -> tokenizers.Tokenizer:
    corpus = [text for text in AWKWARD if text.isascii()] + ["a photo of a cat, a dog and a bird " * 20]
    backend.train_from_iterator(corpus, trainer)
    return backend


def bert(folder: Path) -> None:
    """As ``bert-base-uncased``: word pieces, ``[CLS] … [SEP]``, padding 0."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = trained(
        backend, trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    save(backend, folder, names)


def roberta(folder: Path) -> None:
    """As ``roberta-base``: byte-level BPE, ``<s> … </s>``, padding 1."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend = trained(backend, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    save(
        backend,
        folder,
        {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>"},
    )


def siglip(folder: Path) -> None:
    """As T5's for SigLIP: unigram pieces, ``… </s>``, and the end token is the padding too."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    backend = trained(backend, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    save(backend, folder, {"pad": "</s>", "eos": "</s>", "unk": "<unk>"})


def gemma(folder: Path) -> None:
    """As SigLIP2's: BPE over visible spaces, ``… <eos>``, padding 0."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    backend = trained(backend, trainer)
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    save(backend, folder, {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"})


def save(backend: tokenizers.Tokenizer, folder: Path, names: dict[str, str]) -> None:
    named = {f"{name}_token": token for name, token in names.items()}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    fast.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (bert, {}),
        (bert, {"strip_sep_token": True, "context_length": 32}),
        (roberta, {}),
        (roberta, {"clean": "lower"}),
        (siglip, {"clean": "canonicalize", "context_length": 64}),
        (gemma, {"clean": "canonicalize", "context_length": 64}),
    ],
)
def test_hugging_face_tokenizers(
    make: Callable[[Path], None], options: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path)
    texts = [*AWKWARD, *mixtures(500, seed=2)]
    if options.get(
        "strip_sep_token"
    ):  # the separator takes the padding's id, and its place as a special string
        texts = [text for text in texts if "[PAD]" not in text]
    reference = open_clip_tokenizer.HFTokenizer(str(tmp_path), **options)
    path = tmp_path / "written.json"
    ours = Tokenizer(path, write_tokenizer(reference, path))
    assert_same_ids(reference, ours, texts)


def test_hugging_face_tokenizers_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "written.json"
    roberta(tmp_path)
    for options, reason in (
        ({"padding_side": "left"}, "on the left"),
        ({"truncation_side": "left"}, "on the left"),
        ({"tokenizer_mode": "clips"}, "'clips'"),
    ):
        with pytest.raises(ExportError, match=reason):
            write_tokenizer(open_clip_tokenizer.HFTokenizer(str(tmp_path), **options), path)


def test_a_file_that_gives_other_ids_is_refused(tmp_path: Path) -> None:
    class Shouting(open_clip_tokenizer.SimpleTokenizer):  # type: ignore[misc, name-defined]
        def encode(self, text: str) -> list[int]:
            return super().encode(text + "!")

    with pytest.raises(ExportError, match="other ids"):
        write_tokenizer(Shouting(), tmp_path / "tokenizer.json")


def test_unknown_cleaning_is_refused(tmp_path: Path) -> None:
    reference = open_clip_tokenizer.SimpleTokenizer()
    reference.clean_fn = sys.intern
    with pytest.raises(ExportError, match="cleans text"):
        write_tokenizer(reference, tmp_path / "tokenizer.json")

"""Writes the ``tokenizer.json`` of an open_clip tokenizer, for export; serving only reads the file.

Needs open_clip (extra ``export``), which is imported inside the functions that use it.
"""
# ruff: noqa: RUF001 (the check texts are awkward on purpose)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from models.errors import ExportError
from models.manifest import TextSpec
from models.tokenizer import Tokenizer as ServingTokenizer

Cleaning = Literal["whitespace", "lower", "canonicalize"]

_CHECK_TEXTS = (
    "",
    "a photo of a cat.",
    "  It's   CAFÉ-time: naïve, 3 dogs' & 12 cats’ toys!  ",
    "ＦＵＬＬ ｗｉｄｔｈ, ﬁne ligature, Straße, İstanbul, ſ's",
    "&amp;lt;b&amp;gt; &eacute; donâ€™t schÃ¶n",
    "日本語の写真 фотография кошки صورة قطة 고양이 사진",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u0345 \u200d\ufeff \x00\x1b[31m",
    "under_score <end_of_text> !!<start_of_text> </s> [SEP] <pad>",
    "word " * 300,
)


def write_tokenizer(tokenizer: Any, path: Path) -> TextSpec:
    """Write open_clip's ``tokenizer`` to ``path`` as ``tokenizer.json`` and describe how to use it.

    Takes what ``open_clip.get_tokenizer`` returns: ``SimpleTokenizer``, ``HFTokenizer`` or
    ``SigLipTokenizer``. The file is read back and compared with the original on awkward texts.
    ``dynamic_length`` of the answer is False: whether it may be true is for the text tower to prove.

    Raises:
        ExportError: the tokenizer does something the file cannot say, or the file gives other ids.
    """
    from open_clip.tokenizer import SimpleTokenizer

    convert = _convert_simple if isinstance(tokenizer, SimpleTokenizer) else _convert_hugging_face
    backend, spec = convert(tokenizer)
    backend.save(str(path), pretty=False)
    _compare(tokenizer, ServingTokenizer(path, spec))
    return spec


def _compare(original: Any, written: ServingTokenizer) -> None:
    expected = original(list(_CHECK_TEXTS)).numpy()
    found = written.pad([text.ids for text in written(_CHECK_TEXTS)])
    for text, ours, theirs in zip(_CHECK_TEXTS, found, expected, strict=True):
        if not np.array_equal(ours, theirs):
            raise ExportError(
                f"tokenizer.json gives other ids than open_clip's tokenizer for {text[:40]!r}:"
                f" {ours.tolist()[:12]}… instead of {theirs.tolist()[:12]}…"
            )


def _cleaning(tokenizer: Any) -> Cleaning:
    from open_clip.tokenizer import SigLipTokenizer, get_clean_fn

    if isinstance(tokenizer, SigLipTokenizer):
        return "canonicalize"
    names: tuple[Cleaning, ...] = ("whitespace", "lower", "canonicalize")
    for name in names:
        if get_clean_fn(name) is tokenizer.clean_fn:
            return name
    raise ExportError(f"the tokenizer cleans text with {tokenizer.clean_fn!r}, which serving does not know")


# --- CLIP's own byte-level BPE -------------------------------------------------------------------------


def _convert_simple(tokenizer: Any) -> tuple[Tokenizer, TextSpec]:
    if tokenizer.reduction_fn is not None:
        raise ExportError("the tokenizer drops tokens at random (reduction_mask); that is for training only")
    spec = TextSpec(
        context_length=tokenizer.context_length,
        cleaning=_cleaning(tokenizer),
        pad_token=0,
        end_token=tokenizer.eot_token_id,
    )
    return clip_tokenizer(tokenizer), spec


def clip_tokenizer(tokenizer: Any) -> Tokenizer:
    """Rebuild open_clip's ``SimpleTokenizer`` from its vocabulary and merges, with identical ids.

    Raises:
        ExportError: it has special tokens besides the start and end of text.
    """
    start, end, *others = (tokenizer.decoder[token] for token in tokenizer.all_special_ids)
    if others:
        raise ExportError(f"the tokenizer has special tokens that serving does not know: {', '.join(others)}")
    backend = Tokenizer(
        models.BPE(
            vocab=tokenizer.encoder,
            merges=sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get),
            end_of_word_suffix="</w>",
        )
    )
    words = _ClipWords(start, end)
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(words.special_end), "> "),
            normalizers.Replace(Regex(words.special_inside_symbols), "< "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words.word), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)],
    )
    backend.add_special_tokens([AddedToken(special, normalized=True) for special in (start, end)])
    return backend


class _ClipWords:
    """``SimpleTokenizer.pat`` for another regular expression engine.

    Two things need care. The engines know different versions of Unicode, and ``re.IGNORECASE`` bends
    negated sets, so each character class is spelt out as the ranges that open_clip's engine matches.
    And open_clip takes a special string for a special token only where a word begins, whereas an added
    token is found everywhere. So a space goes after each special string that begins a word, and after
    the ``<`` of each that lies in a run of symbols; both are places where a word ends anyway.
    """

    def __init__(self, start: str, end: str) -> None:
        letter = _ranges(r"[\p{L}]")
        number = _ranges(r"[\p{N}]")
        symbol = _ranges(r"[^\s\p{L}\p{N}]")
        special = "|".join(_any_case(text) for text in (start, end))
        special_unclosed = special.replace(">", "")
        contraction = "|".join(_any_case(text) for text in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"))
        tail = "|".join(text.removeprefix("<") for text in (start, end))
        self.word = f"{special}|{contraction}|[{letter}]+|[{number}]|[{symbol}]+"
        self.special_end = rf"(?:(?<![{symbol}])|\G)(?:{special_unclosed})\K>"
        self.special_inside_symbols = f"(?<=[{symbol}])<(?={tail})"


def _ranges(character_class: str) -> str:
    """Every range of code points that open_clip's engine matches with ``character_class``."""
    import regex

    everything = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    runs = regex.finditer(f"{character_class}+", everything, regex.IGNORECASE)
    return "".join(rf"\x{{{ord(run[0][0]):X}}}-\x{{{ord(run[0][-1]):X}}}" for run in runs)


def _any_case(text: str) -> str:
    """``text`` as a pattern that ignores case as open_clip's engine does: the long s is an s too."""
    return "".join(
        f"[{char}{char.upper()}{'ſ' * (char == 's')}]" if char.isalpha() else char for char in text
    )


# --- Tokenizers of the Hugging Face hub ----------------------------------------------------------------


def _convert_hugging_face(wrapper: Any) -> tuple[Tokenizer, TextSpec]:
    if getattr(wrapper, "tokenizer_mode", ""):
        raise ExportError(f"tokenizer mode {wrapper.tokenizer_mode!r} is not supported")
    tokenizer = wrapper.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"{type(tokenizer).__name__} has no fast form that could be written as tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        raise ExportError("the tokenizer has no padding token")
    if "left" in (tokenizer.padding_side, tokenizer.truncation_side):
        raise ExportError("the tokenizer pads or truncates on the left; only the right is supported")
    backend = _standalone(tokenizer, strip_separator=getattr(wrapper, "strip_sep_token", False))
    spec = TextSpec(
        context_length=wrapper.context_length,
        cleaning=_cleaning(wrapper),
        pad_token=tokenizer.pad_token_id,
        end_token=_end_token(backend),
    )
    return backend, spec


def _standalone(tokenizer: Any, *, strip_separator: bool) -> Tokenizer:
    """A copy of the fast tokenizer's backend, without the padding and truncation of its last call."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return _with_separator_as_zero(backend, tokenizer.sep_token) if strip_separator else backend


def _with_separator_as_zero(backend: Tokenizer, separator: str) -> Tokenizer:
    """What ``strip_sep_token`` does to the ids, done to the tokenizer: the separator's id becomes 0.

    An id has one special string, so the padding's own, typed into a text, is read as plain text from then on.
    """
    document = json.loads(backend.to_str())
    vocabulary = document["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise ExportError(f"cannot strip the separator of a {document['model']['type']} tokenizer")
    # Were two strings to share an id, which of them survives being written would be up to chance.
    document["model"]["vocab"] = {text: token for text, token in vocabulary.items() if token} | {separator: 0}
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"]]
    for token in document["added_tokens"]:
        if token["content"] == separator:
            token["id"] = 0
    post_processor = document["post_processor"]
    if post_processor["type"] == "TemplateProcessing":
        post_processor["special_tokens"][separator]["ids"] = [0]
    else:
        post_processor["sep"] = [separator, 0]
    return Tokenizer.from_str(json.dumps(document))


def _end_token(backend: Tokenizer) -> int | None:
    """The id that the post-processor puts last, or None where it adds nothing after the text."""
    encoding = backend.encode("a")
    trailing = 0
    for special in reversed(encoding.special_tokens_mask):
        if not special:
            break
        trailing += 1
    if trailing > 1:
        raise ExportError(
            f"the tokenizer ends a text with {trailing} special tokens; at most one is supported"
        )
    return encoding.ids[-1] if trailing else None

"""Text → token ids without torch: the manifest's cleaning, then the model's own ``tokenizer.json``.

Reference: ``open_clip/tokenizer.py`` (``basic_clean`` and the functions around it, ``SimpleTokenizer``,
``HFTokenizer``); parity with it is tested on thousands of generated strings.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray

from models.errors import ManifestError, UnknownTokenError
from models.manifest import TextSpec

_NO_TOKEN = 2**32  # ids are 32 bits wide
_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """One text's token ids, int64 (length,), start and end tokens included.

    ``truncated`` says that the text had more tokens than the context and lost its tail. The first
    ``count`` ids are the text's, the rest is padding.
    """

    ids: NDArray[np.int64]
    truncated: bool
    count: int


class Tokenizer:
    """What the text tower was trained with, read from ``tokenizer.json`` at ``path``.

    The underlying tokenizer's padding and truncation are switched off for good and done here in numpy,
    so nothing changes after construction and any number of threads may share one instance.

    Raises:
        ManifestError: the file is missing or is no ``tokenizer.json``.
    """

    def __init__(self, path: Path, spec: TextSpec) -> None:
        self._spec = spec
        self._clean = _CLEANING[spec.cleaning]
        self._backend = _load(path)

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize texts, cut to the context with the end token kept last.

        Ids are padded to (context_length,), or left at their real length where ``dynamic_length``.
        """
        return [self._fit(ids) for ids in self._encode(texts)]

    def from_ids(self, ids: Sequence[int]) -> TokenizedText:
        """Take ids that this tokenizer gave earlier, with or without start and end tokens and padding.

        Raises:
            UnknownTokenError: one of them is none of this tokenizer's.
        """
        for token in set(ids):
            if not 0 <= token < _NO_TOKEN or self._backend.id_to_token(token) is None:
                size = self._backend.get_vocab_size()
                raise UnknownTokenError(f"{token} is none of the model's {size} token ids")
        start, end = self._frame
        return self._fit([*start, *self._bare(list(ids)), *end])

    def count(self, text: str) -> int:
        """How many tokens the whole text has, start and end tokens included, nothing cut."""
        return len(self._encode([text])[0])

    def pad(self, batch: Sequence[NDArray[np.int64]], *, multiple_of: int = 1) -> NDArray[np.int64]:
        """Stack ids of N texts into int64 (N, L).

        L is the longest of them, rounded up to ``multiple_of`` where the context leaves room for it.
        """
        longest = max((len(ids) for ids in batch), default=0)
        length = max(longest, min(-(-longest // multiple_of) * multiple_of, self._spec.context_length))
        padded = np.full((len(batch), length), self._spec.pad_token, dtype=np.int64)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        return padded

    def _bare(self, ids: list[int]) -> list[int]:
        """``ids`` without start and end tokens, and without padding after an end token."""
        start, end = self._frame
        own = ids[len(start) :] if ids[: len(start)] == start else ids
        unpadded = own.copy()
        while unpadded and unpadded[-1] == self._spec.pad_token:
            unpadded.pop()
        if end and unpadded[-len(end) :] == end:
            return unpadded[: -len(end)]
        # Without an end token before it, what looks like padding is text, as CLIP's 0 is an exclamation mark.
        return unpadded if end == [self._spec.pad_token] else own

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and after every text."""
        encoding = self._backend.encode("a")
        added = encoding.special_tokens_mask
        first, last = added.index(0), len(added) - added[::-1].index(0)
        return encoding.ids[:first], encoding.ids[last:]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast([self._clean(text) for text in texts])
        return [encoding.ids for encoding in encodings]

    def _fit(self, ids: list[int]) -> TokenizedText:
        limit = self._spec.context_length
        truncated = len(ids) > limit
        count = min(len(ids), limit)
        if truncated:
            ids = ids[:limit]
            if self._spec.end_token is not None:
                ids[-1] = self._spec.end_token
        elif not self._spec.dynamic_length:
            ids = ids + [self._spec.pad_token] * (limit - len(ids))
        return TokenizedText(np.array(ids, dtype=np.int64), truncated, count)


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot read {path.name} ({error.strerror})") from error
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise ManifestError(f"{path.name} is no tokenizer file: {error}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _repair(text: str) -> str:
    """Mend mojibake and resolve HTML entities, as every cleaning of open_clip begins."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # nothing for ftfy or unescape to find, and prompts are mostly like this
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _collapse_whitespace(text: str) -> str:
    return " ".join(_repair(text).split())


def _lower(text: str) -> str:
    return _collapse_whitespace(text).lower()


def _canonicalize(text: str) -> str:
    """SigLIP's: no punctuation, lower case, single spaces (big_vision ``prompt_engineering.py``)."""
    return " ".join(_repair(text).translate(_PUNCTUATION).lower().split())


def _replace_lone_surrogates(text: str) -> str:
    """JSON can carry half a surrogate pair; UTF-8, which the backend takes, cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_CLEANING: dict[str, Callable[[str], str]] = {
    "none": _replace_lone_surrogates,
    "whitespace": _collapse_whitespace,
    "lower": _lower,
    "canonicalize": _canonicalize,
}

"""The embedded model's own small tokenizer: byte-level BPE, so that every Unicode string has tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from models.manifest import TextSpec

CONTEXT_LENGTH = 32
START, END = "<start_of_text>", "<end_of_text>"


class ShapesTokenizer:
    """Texts → ids with start and end token, as the text tower is trained on.

    The end token has the highest id, since open_clip pools the text tower at the argmax of the ids.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int = 1200) -> ShapesTokenizer:
        """Learn merges (byte-pair encoding, Sennrich et al. 2016) until ``vocabulary`` entries are found."""
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - 2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens([START, END])
        ids = [(token, backend.token_to_id(token)) for token in (START, END)]
        backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
        return cls(backend)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, special ones included."""
        return int(self._backend.get_vocab_size())

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens of each text, cut or padded with 0 to the context length: int64 (texts, 32)."""
        tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.int64)
        for row, encoding in zip(tokens, self._backend.encode_batch(list(texts)), strict=True):
            ids = encoding.ids
            if len(ids) > CONTEXT_LENGTH:
                ids = [*ids[: CONTEXT_LENGTH - 1], ids[-1]]
            row[: len(ids)] = ids
        return tokens

    def write(self, path: Path) -> TextSpec:
        """Write ``tokenizer.json`` and say how its ids are to be used."""
        self._backend.save(str(path))
        return TextSpec(
            context_length=CONTEXT_LENGTH,
            cleaning="lower",
            pad_token=0,
            end_token=self._backend.token_to_id(END),
        )

"""What would come from a model hub, made on the spot: tokenizers and text tower configurations.

They have the structure of the originals (kind, special tokens, post-processor), not the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, XLMRobertaConfig

_CORPUS = [
    "a photo of a small red dog under the old bridge",
    "an aerial view of a harbour at dusk with fishing boats",
    "snow covered mountains, a pink sky & the river's 17 bends!",
    "ein gelber Schmetterling auf einer Blüte",
]


def siglip_tokenizer(folder: Path) -> Path:
    """A unigram tokenizer that ends texts with ``</s>`` and pads with it too, as SigLIP's c4-en does."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(str(folder))
    return folder


def roberta(folder: Path, **sizes: int) -> Path:
    """A RoBERTa text tower's configuration and its byte-level tokenizer; ``sizes`` shrink the tower."""
    RobertaConfig(**{"vocab_size": 50265, "max_position_embeddings": 514, **sizes}).save_pretrained(
        str(folder)
    )
    return _roberta_tokenizer(folder)


def xlm_roberta(folder: Path) -> Path:
    """XLM-RoBERTa's configuration, base size, with the same stand-in tokenizer."""
    XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514).save_pretrained(str(folder))
    return _roberta_tokenizer(folder)


def _roberta_tokenizer(folder: Path) -> Path:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    wrapped.save_pretrained(str(folder))
    return folder

"""Byte-level BPE trained on texts: every text has tokens, and the tokens give it back unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers, processors

from research import runs
from research.data import subwords
from research.errors import ConfigError

START = "[CLS]"
SPECIAL = ("[PAD]", START, "[MASK]")


def train_bpe(texts: Iterable[str], size: int, path: str | Path) -> Path:
    """Trains a vocabulary of at most `size` tokens (Sennrich et al., 2016; Radford et al., 2019).

    `path` is the tokenizer.json, which is returned. A text begins with [CLS] and has nothing after
    it. Nothing is unknown, so that likelihoods a byte compare models of any vocabulary. The same
    texts give the same file. Raises ConfigError where `size` does not hold the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < len(alphabet) + len(SPECIAL):
        raise ConfigError(
            f"a vocabulary of {size} tokens is too small: bytes and special tokens alone are "
            f"{len(alphabet) + len(SPECIAL)}"
        )
    tokenizer = subwords.train_bpe(texts, size, SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A",
        pair=f"{START} $A $B:1",
        special_tokens=[(START, tokenizer.token_to_id(START))],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_atomic(path, tokenizer.to_str().encode())
    return path

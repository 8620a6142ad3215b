"""Byte-level BPE from its two files, tokens and merges, as GPT-2 and RoBERTa have it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from research.errors import ConfigError

# By the names of Hugging Face and by those of OpenAI.
FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def find(directory: Path) -> tuple[Path, Path] | None:
    """The two files of a directory, None where it does not have both."""
    for names in FILES:
        tokens, merges = (directory / name for name in names)
        if tokens.is_file() and merges.is_file():
            return tokens, merges
    return None


def load(tokens: Path, merges: Path) -> Tokenizer:
    """The tokenizer of GPT-2 (Radford et al., 2019), or RoBERTa's where there is a <mask>: the same
    with <s> and </s> around texts (Liu et al., 2019).

    Raises ConfigError for files that do not belong together.
    """
    try:
        words = json.loads(tokens.read_text(encoding="utf-8"))
        model = models.BPE.from_file(str(tokens), str(merges))
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(
            f"{tokens}: is no byte-level BPE with {merges.name}: {str(error)[:200]}"
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if "<mask>" not in words:
        tokenizer.add_special_tokens([name for name in ("<|endoftext|>",) if name in words])
    else:
        tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
        # The mask takes the space before it, as a word would.
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", words["</s>"]), ("<s>", words["<s>"]), add_prefix_space=False
        )
    return tokenizer

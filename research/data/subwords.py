"""Tokenizers trained on texts: WordPiece, byte-level BPE and Unigram, equal from equal texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from research.data.vocabulary import load_tokenizer
from research.data.wordpiece import train_wordpiece, write
from research.errors import ConfigError

Kind = Literal["wordpiece", "bpe", "unigram"]
# RoBERTa's (Liu et al., 2019), by the names that transformers gives them.
SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
TOKENS = list(SPECIAL.values())
# Between the scores of letters that a Unigram trainer brings back.
STEP = 1e-4


def train(kind: Kind, texts: Iterable[str], size: int, folder: str | Path) -> Path:
    """Trains a vocabulary of at most `size` tokens into a folder that transformers loads too.

    `wordpiece` is BERT's, in lower case (Schuster & Nakajima, 2012); `bpe` merges bytes, so that
    it spells any text (Sennrich et al., 2016; Radford et al., 2019); `unigram` is SentencePiece's
    (Kudo, 2018), its scores to six decimals, because the trainer adds up in any order. Raises
    ConfigError where `size` does not hold the letters of the texts.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; a tokenizer is a folder")
    if kind == "wordpiece":
        return train_wordpiece(texts, size, folder)
    tokenizer = train_bpe(texts, size) if kind == "bpe" else train_unigram(texts, size)
    made = tokenizer.get_vocab_size()
    if made > size:
        raise ConfigError(
            f"a vocabulary of {size} tokens is too small: special tokens and letters alone are "
            f"{made}"
        )
    frame = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=frame
    )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "cls_token": "<s>",
        "sep_token": "</s>",
        **SPECIAL,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "tokenizer.json", tokenizer.to_str())
    write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
    return folder


def size(folder: str | Path) -> int:
    """Tokens of a tokenizer."""
    return int(load_tokenizer(str(folder)).get_vocab_size(with_added_tokens=True))


def train_bpe(texts: Iterable[str], size: int, special: Sequence[str] = TOKENS) -> Tokenizer:
    """Byte-level BPE: decoding gives back every text as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_unigram(texts: Iterable[str], size: int) -> Tokenizer:
    """Unigram over words that begin with ▁, compatibility forms unified (NFKC)."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=TOKENS, unk_token="<unk>", show_progress=False
    )
    try:
        raw.train_from_iterator(texts, trainer)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"no Unigram vocabulary of {size} tokens: {error}") from None
    found = dict(json.loads(raw.to_str())["model"]["vocab"])
    scores = settled({piece: found[piece] for piece in found.keys() - set(TOKENS)})
    pieces = sorted(scores, key=lambda piece: (-scores[piece], piece))
    vocabulary = [(token, 0.0) for token in TOKENS] + [(piece, scores[piece]) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, TOKENS.index("<unk>"), False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = raw.normalizer, raw.pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(TOKENS)
    return tokenizer


def settled(scores: dict[str, float]) -> dict[str, float]:
    """Scores that do not depend on the order of a hash table, which differs between processes.

    Sums are rounded. Letters that training threw out come back in any order, at the lowest score
    and 0.0001, 0.0002, ... above it: all get the lowest.
    """
    made = {piece: round(score, 6) for piece, score in scores.items()}
    lowest, above = min(made.values()), 0
    for piece in sorted((p for p in made if len(p) == 1), key=lambda piece: scores[piece]):
        steps = (made[piece] - lowest) / STEP
        if steps > above + 0.02:
            break
        made[piece], above = lowest, round(steps) + 1
    return made

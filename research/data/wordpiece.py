"""BERT's tokenizer: WordPiece from its vocab.txt, or trained on texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import BertProcessing

from research.errors import ConfigError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_vocabulary(path: Path) -> Tokenizer:
    """BERT's vocab.txt.

    `tokenizer_config.json` beside it says whether to lower-case; without one, a vocabulary that
    knows capital letters is taken to be a cased one.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start + 1}") from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    tokens = {token: i for i, token in enumerate(lines)}
    for token in ("[UNK]", "[CLS]", "[SEP]"):
        if token not in tokens:
            raise ConfigError(f"{path}: is not a vocabulary of BERT's, it has no {token}")
    config = read_settings(path.with_name("tokenizer_config.json"))
    cased = any(re.fullmatch(r"(##)?[A-Z][a-z]+", token) for token in tokens)
    lower = config.get("do_lower_case", not cased)
    chinese, accents = config.get("tokenize_chinese_chars", True), config.get("strip_accents")
    return wordpiece(models.WordPiece(tokens, unk_token="[UNK]"), lower, chinese, accents)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: broken JSON: {error}") from None
    return settings if isinstance(settings, dict) else {}


def wordpiece(
    model: models.WordPiece, lower: bool, chinese: bool = True, accents: bool | None = None
) -> Tokenizer:
    """BERT's tokenizer around a WordPiece model (Devlin et al., 2019)."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    finish(tokenizer)
    return tokenizer


def finish(tokenizer: Tokenizer) -> None:
    """Adds BERT's special tokens and [CLS] a [SEP] b [SEP] around the texts, where it has them."""
    present = [token for token in BERT_SPECIAL if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(present)
    if present:
        ids = tokenizer.get_vocab(with_added_tokens=True)
        tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))


def train_wordpiece(texts: Iterable[str], size: int, path: str | Path) -> Path:
    """Trains a lower-casing WordPiece vocabulary of at most `size` tokens; returns `path`.

    `path` is a tokenizer.json, or a directory that gets one and loads in transformers. The same
    texts give the same file. Raises ConfigError where `size` does not even hold their letters.
    """
    raw = wordpiece(models.WordPiece(unk_token="[UNK]"), lower=True)
    kept = list(texts)
    letters = inner_letters(raw, kept)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*BERT_SPECIAL, *letters], show_progress=False
    )
    raw.train_from_iterator(kept, trainer)
    tokens = raw.get_vocab()
    if len(tokens) > size:
        raise ConfigError(
            f"a vocabulary of {size} tokens is too small: the letters of the texts alone are "
            f"{len(tokens)}"
        )
    tokenizer = wordpiece(models.WordPiece(tokens, unk_token="[UNK]"), lower=True)
    path = Path(path)
    file = path if path.suffix == ".json" else path / "tokenizer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, tokenizer.to_str())
    if file != path:
        special = {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIAL}
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **special}
        write(path / "tokenizer_config.json", json.dumps(settings, indent=2))
    return path


def inner_letters(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """ "##x" for every letter x inside a word, sorted.

    The trainer would number them in the order of a hash table that is seeded anew in every process,
    and ties between merges are broken by these numbers.
    """
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    letters = {
        letter for text in texts for word, _ in split(normalize(text)) for letter in word[1:]
    }
    return sorted(f"##{letter}" for letter in letters)


def write(file: Path, text: str) -> None:
    """Replaces a file as a whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)

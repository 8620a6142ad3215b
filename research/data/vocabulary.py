"""Tokenizers: loaded from files, trained, and what a model needs to know of their vocabulary."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import BertProcessing

from research.data import cache, sentencepiece
from research.errors import ConfigError

NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Facts of a tokenizer. An id is None where it has no such token.

    `size` is the largest id + 1; `continues`, bool [V], says which tokens go on with the word of
    the token before; `special` are the ids that are no text; `fingerprint` is that of the whole
    tokenizer.
    """

    size: int
    pad: int | None
    cls: int | None
    sep: int | None
    mask: int | None
    unk: int | None
    continues: np.ndarray
    special: tuple[int, ...]
    fingerprint: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Reads them off a tokenizer."""
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        ids = {
            role: next((tokens[name] for name in names if name in tokens), None)
            for role, names in NAMES.items()
        }
        added = tokenizer.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        special |= {i for i in ids.values() if i is not None}
        return cls(
            size=max(tokens.values()) + 1,
            continues=continuations(tokens, special),
            special=tuple(sorted(special)),
            fingerprint=fingerprint(tokenizer),
            **ids,
        )

    def facts(self) -> dict[str, object]:
        """What a task may want to know of its tokens, by the names of a task's fields."""
        return {
            "vocab_size": self.size,
            "pad_id": self.pad,
            "cls_id": self.cls,
            "sep_id": self.sep,
            "mask_id": self.mask,
            "special_ids": self.special,
            "continue_ids": tuple(np.flatnonzero(self.continues).tolist()),
            "tokenizer_fingerprint": self.fingerprint,
        }


def continuations(tokens: dict[str, int], special: set[int]) -> np.ndarray:
    """Which tokens go on with a word, by the sign that this vocabulary marks words with.

    WordPiece marks what continues with ##; SentencePiece and byte-level BPE mark what begins.
    """
    continues = np.zeros(max(tokens.values()) + 1, bool)
    marks = {mark: sum(token.startswith(mark) for token in tokens) for mark in ("##", "▁", "Ġ")}
    mark = max(marks, key=lambda mark: marks[mark])
    if marks[mark] < 2:
        return continues
    for token, i in tokens.items():
        continues[i] = i not in special and token.startswith(mark) == (mark == "##")
    return continues


def fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits over everything that decides its tokens."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a directory, of a tokenizer.json, vocab.txt or XLNet's spiece.model, or of a
    Hugging Face id.

    "stdlib:4000" is a WordPiece of 4,000 tokens trained on the standard library's documentation,
    once for each version of Python. Truncation and padding that the file asks for are switched off.
    Raises ConfigError where there is none.
    """
    path = stdlib_wordpiece(spec) if spec.startswith("stdlib:") else Path(spec).expanduser()
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", "vocab.txt", "spiece.model")]
        path = next((file for file in files if file.is_file()), path)
    if path.is_file():
        readers = {".txt": load_vocabulary, ".model": sentencepiece.load_xlnet}
        tokenizer = readers.get(path.suffix, load_json)(path)
    elif path.is_dir() or re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", spec):
        tokenizer = load_from_hub(spec)
    else:
        raise ConfigError(f"tokenizer {spec}: no such directory or file")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def stdlib_wordpiece(spec: str) -> Path:
    """The file of the tokenizer "stdlib:SIZE", trained where it is not in the cache yet."""
    size = spec.partition(":")[2]
    if not size.isdecimal():
        raise ConfigError(f"tokenizer {spec}: write stdlib:SIZE, such as stdlib:4000")
    name = f"stdlib-{platform.python_version()}-{size}.json"
    file = cache.directory().parent / "tokenizers" / name
    if file.is_file():
        return file
    # Imported here: parsing the library is for those who ask for it.
    from research.data import stdlib

    return train_wordpiece((row["text"] for row in stdlib.passages()), int(size), file)


def load_json(path: Path) -> Tokenizer:
    """A tokenizer.json."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"{path}: is not a tokenizer.json: {str(error)[:200]}") from None


def load_from_hub(spec: str) -> Tokenizer:
    """What transformers makes of a directory or of a name on the Hugging Face hub."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(spec)
    except Exception as error:  # anything at all, from the network to a missing converter
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"tokenizer {spec}: no such directory or file, and not found on the Hugging Face hub "
            f"or in its cache ({type(error).__name__}: {first})"
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"tokenizer {spec}: has no fast version, which Graft needs")
    return Tokenizer.from_str(backend.to_str())


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


def tokenizer_of(spec: str) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer and its facts, loaded once a process while its files are unchanged."""
    names = ("", "tokenizer.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
    paths = [Path(spec).expanduser() / name for name in names]
    stats = [path.stat() if path.exists() else None for path in paths]
    return loaded_tokenizer(spec, tuple(s and (s.st_size, s.st_mtime_ns) for s in stats))


@functools.lru_cache(maxsize=4)
def loaded_tokenizer(
    spec: str, found: tuple[tuple[int, int] | None, ...]
) -> tuple[Tokenizer, Vocabulary]:
    """Loads a tokenizer."""
    tokenizer = load_tokenizer(spec)
    return tokenizer, Vocabulary.of(tokenizer)

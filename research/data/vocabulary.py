"""Tokenizers: loaded from files, trained, and what a model needs to know of their vocabulary."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from research.data import cache, tokenizer_files
from research.data.wordpiece import load_vocabulary, read_settings, train_wordpiece
from research.errors import ConfigError

NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
}
# Where a tokenizer may lie in a directory, the first one there is.
FILES = ("tokenizer.json", "vocab.txt", *tokenizer_files.NAMES)


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
    bos: int | None
    eos: int | None
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
            "bos_id": self.bos,
            "eos_id": self.eos,
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
    """The tokenizer of a directory, of one of its files, or of a Hugging Face id.

    "stdlib:4000" is a WordPiece of 4,000 tokens trained on the standard library's documentation,
    once for each version of Python. Truncation and padding that the file asks for are switched off.
    Raises ConfigError where there is none.
    """
    path = stdlib_wordpiece(spec) if spec.startswith("stdlib:") else Path(spec).expanduser()
    if path.is_dir():
        files = [path / name for name in FILES]
        path = next((file for file in files if file.is_file()), path)
    if path.is_file():
        tokenizer = load_file(path)
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


def load_file(path: Path) -> Tokenizer:
    """The tokenizer of a file, by its name; one of unknown name is a tokenizer.json."""
    if path.name in tokenizer_files.NAMES:
        settings = read_settings(path.with_name("tokenizer_config.json"))
        model_type = read_settings(path.with_name("config.json")).get("model_type")
        return tokenizer_files.load_files(path, settings, model_type)
    return load_vocabulary(path) if path.suffix == ".txt" else load_json(path)


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


def tokenizer_of(spec: str) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer and its facts, loaded once a process while its files are unchanged."""
    names = ("", *FILES, "merges.txt", "tokenizer_config.json")
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

"""A vocabulary of whole words, and words as rows of their bytes: the input of recurrent trunks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers

from research.data import cache
from research.data.wordpiece import write
from research.errors import ConfigError

PAD, UNKNOWN = "[PAD]", "[UNK]"
LEAST = 2


def size_of(spec: str) -> int:
    """The size in "words:30000". Raises ConfigError for anything else."""
    size = spec.partition(":")[2]
    if not size.isdecimal() or int(size) < LEAST + 1:
        raise ConfigError(f"tokenizer {spec}: write words:SIZE, such as words:30000")
    return int(size)


def word_tokenizer(
    train: Iterable[Sequence[str]], others: Iterable[Sequence[str]], known: Set[str], size: int
) -> Tokenizer:
    """A tokenizer whose tokens are lower-cased words.

    It has the words of `train` that occur at least twice and all that are `known`, then the known
    ones of `others`, the most frequent first, `size` at most. All else is [UNK], which is thus
    learned from the words that train holds once (Lample et al., 2016).
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    lower = tokenizer.normalizer.normalize_str
    counts = Counter(lower(word) for words in train for word in words)
    chosen = [word for word, count in counts.items() if count >= LEAST or word in known]
    chosen.sort(key=lambda word: (-counts[word], word))
    more = {lower(word) for words in others for word in words} & known - set(chosen)
    listed = [PAD, UNKNOWN, *[word for word in chosen if word not in (PAD, UNKNOWN)], *sorted(more)]
    numbers = {word: i for i, word in enumerate(listed[:size])}
    tokenizer.model = models.WordLevel(numbers, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([PAD, UNKNOWN])
    return tokenizer


def keep(tokenizer: Tokenizer) -> Path:
    """The tokenizer as a file in the cache, named by its content."""
    text = tokenizer.to_str()
    name = f"words-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    file = cache.directory().parent / "tokenizers" / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, text)
    return file


def spell(sentences: Sequence[Sequence[str]], width: int) -> np.ndarray:
    """Each word as its UTF-8 bytes + 1, 0 after its end: int32 [words of all sentences, width].

    Of a longer word the first and the last bytes are kept, half each.
    """
    words = [word for sentence in sentences for word in sentence]
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    table = np.zeros((len(numbers), width), np.int32)
    for word, row in zip(numbers, table):
        raw = word.encode("utf-8")
        if len(raw) > width:
            raw = raw[: (width + 1) // 2] + raw[len(raw) - width // 2 :]
        row[: len(raw)] = np.frombuffer(raw, np.uint8).astype(np.int32) + 1
    return table[index]

"""The words of a domain: which of them a tokenizer splits, and the tokenizer that knows them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from research.errors import ConfigError

# A word that is met once says nothing of the next text.
FEWEST = 2
CHOSEN = re.compile(r"[^\W\d_]\w*")
WRITTEN = re.compile(r"\w")


@dataclass(frozen=True)
class Domain:
    """Words of a domain's texts, as a tokenizer divides them, with how often each occurs."""

    counts: Counter[str]

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: Tokenizer) -> Domain:
        """Counts the words of texts. Raises ConfigError for a tokenizer that is no WordPiece,
        and for texts without words."""
        kind = json.loads(tokenizer.to_str())["model"]["type"]
        if kind != "WordPiece":
            raise ConfigError(f"words can be added to a WordPiece tokenizer, but this is {kind}")
        normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
        split = tokenizer.pre_tokenizer.pre_tokenize_str
        counts = Counter(word for text in texts for word, _ in split(normalize(text)))
        found = cls(Counter({w: n for w, n in counts.items() if WRITTEN.search(w)}))
        if not found.counts:
            raise ConfigError("the texts of the domain hold no words")
        return found

    def useful(self, tokenizer: Tokenizer, most: int) -> dict[str, tuple[int, ...]]:
        """The words that save most tokens when each is one, and the ids of their pieces today.

        A word saves its pieces but one, each time it occurs; equals go by the alphabet.
        """
        pieces = {
            word: tuple(tokenizer.encode(word, add_special_tokens=False).ids)
            for word, count in self.counts.items()
            if count >= FEWEST and CHOSEN.fullmatch(word)
        }
        split = [word for word, ids in pieces.items() if len(ids) > 1]
        split.sort(key=lambda word: (-self.counts[word] * (len(pieces[word]) - 1), word))
        return {word: pieces[word] for word in split[:most]}

    def tokens_per_word(self, tokenizer: Tokenizer) -> float:
        """Of the texts; punctuation is no word."""
        tokens = sum(
            count * len(tokenizer.encode(word, add_special_tokens=False).ids)
            for word, count in self.counts.items()
        )
        return tokens / sum(self.counts.values())


def with_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """A tokenizer that makes one token of each of these words, and of all else what it made before.

    They are matched whole, before the tokenizer's own rules: in its vocabulary they would also
    change words that only begin like them.
    """
    extended = Tokenizer.from_str(tokenizer.to_str())
    extended.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return extended

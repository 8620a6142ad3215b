"""Filters of documents: length, symbols, stop words, repetition (Rae et al., 2021)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("-", "*", "•", "‣", "–")
WORD = re.compile(r"\w+")
LETTER = re.compile(r"[^\W\d_]")
SYMBOL = re.compile(r"#|…|\.\.\.")


class Filter(Protocol):
    """Says why a document is not to be used. Reasons are few: they are counted."""

    def reason(self, text: str) -> str | None:
        """The first rule that a text breaks, None where it breaks none."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """Documents of `fewest` to `most` words, which are what stands between spaces."""

    fewest: int = 1
    most: int | None = None

    def reason(self, text: str) -> str | None:
        """See `Filter`."""
        count = len(text.split())
        if count < self.fewest:
            return f"under {self.fewest} words"
        return f"over {self.most} words" if self.most is not None and count > self.most else None


@dataclass(frozen=True, kw_only=True)
class Gopher:
    """The quality rules of MassiveText (Rae et al., 2021, appendix A1.1), with its numbers.

    A document has `words` words (lowest, highest) of a mean length in `word_length`; at most
    `symbols` of # and … a word; at most `bullets` of its lines begin with a bullet and `ellipses`
    end with an ellipsis; at least `alphabetic` of the words have a letter, and at least
    `stop_words` of its words are among eight stop words of English.
    """

    words: tuple[int, int] = (50, 100_000)
    word_length: tuple[float, float] = (3.0, 10.0)
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    alphabetic: float = 0.8
    stop_words: int = 2

    def reason(self, text: str) -> str | None:
        """See `Filter`."""
        words = text.split()
        count = len(words)
        if reason := Length(fewest=max(1, self.words[0]), most=self.words[1]).reason(text):
            return reason
        low, high = self.word_length
        if not low <= sum(map(len, words)) / count <= high:
            return f"mean word length not within {low:g} to {high:g}"
        if len(SYMBOL.findall(text)) > self.symbols * count:
            return f"over {self.symbols:g} symbols a word"
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if sum(line.startswith(BULLETS) for line in lines) > self.bullets * len(lines):
            return f"over {self.bullets:g} of the lines are bullets"
        if sum(line.endswith(("...", "…")) for line in lines) > self.ellipses * len(lines):
            return f"over {self.ellipses:g} of the lines end in an ellipsis"
        if sum(LETTER.search(word) is not None for word in words) < self.alphabetic * count:
            return f"under {self.alphabetic:g} of the words have a letter"
        if sum(word.lower() in STOP_WORDS for word in WORD.findall(text)) < self.stop_words:
            return f"under {self.stop_words} stop words"
        return None


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The repetition rules of MassiveText (Rae et al., 2021, table A1), with its numbers.

    At most `lines` (`paragraphs`) of the lines (what blank lines divide) are copies of an earlier
    one, and hold at most `line_signs` (`paragraph_signs`) of the characters. For n from 2 on, `top`
    bounds the share of the words' characters that the most frequent n-gram covers; for n from 5
    on, `repeated` that which all n-grams cover that occur more than once.
    """

    lines: float = 0.3
    line_signs: float = 0.2
    paragraphs: float = 0.3
    paragraph_signs: float = 0.2
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated: tuple[float, ...] = field(default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10))

    def reason(self, text: str) -> str | None:
        """See `Filter`."""
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        for parts, share, signs, name in (
            (lines, self.lines, self.line_signs, "lines"),
            (paragraphs, self.paragraphs, self.paragraph_signs, "paragraphs"),
        ):
            copies, covered = repeats(parts)
            if copies > share:
                return f"over {share:g} of the {name} are copies"
            if covered > signs:
                return f"copied {name} hold over {signs:g} of the characters"
        words = WORD.findall(text.lower())
        for n, most in enumerate(self.top, 2):
            if top_share(words, n) > most:
                return f"a {n}-gram covers over {most:g} of the words"
        for n, most in enumerate(self.repeated, 5):
            if repeated_share(words, n) > most:
                return f"repeated {n}-grams cover over {most:g} of the words"
        return None


def repeats(parts: Sequence[str]) -> tuple[float, float]:
    """The share of the parts that are copies of an earlier one, and that of the characters."""
    if not parts:
        return 0.0, 0.0
    copied = len(parts) - len(set(parts))
    signs = sum(map(len, parts))
    return copied / len(parts), 1 - sum(map(len, set(parts))) / signs


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order."""
    return list(zip(*(words[i:] for i in range(n))))


def top_share(words: Sequence[str], n: int) -> float:
    """Characters of the most frequent n-gram, times how often it occurs, over all; 0 for once."""
    found = Counter(grams(words, n)).most_common(1)
    if not found or found[0][1] == 1:
        return 0.0
    return len("".join(found[0][0])) * found[0][1] / len("".join(words))


def repeated_share(words: Sequence[str], n: int) -> float:
    """The share of the characters in n-grams that occur more than once, each word counted once."""
    found = grams(words, n)
    counts = Counter(found)
    if len(counts) == len(found):
        return 0.0
    covered = {i + k for i, gram in enumerate(found) if counts[gram] > 1 for k in range(n)}
    return sum(len(words[i]) for i in covered) / len("".join(words))

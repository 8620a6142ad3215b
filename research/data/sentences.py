"""Rows as sentences: lists of words with tags that follow their scheme, or the reason why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from research.data import tags
from research.data.rows import Rows, keep_good
from research.data.sources import format_of
from research.data.words import Span, split_text
from research.errors import DataError

NO_WORDS = "the sentence has no tokens"


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Sentences by row: words, tags and intent, the text and where in it the words lie."""

    words: list[list[str]]
    tags: list[list[str]] = field(default_factory=list)
    intents: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)


def values_of(cell: str) -> list[str]:
    """The values in a cell, a JSON list or a text with spaces between them."""
    if cell.startswith("["):
        try:
            found = json.loads(cell)
        except ValueError:
            return cell.split()
        if isinstance(found, list) and all(isinstance(value, str) for value in found):
            return found
    return cell.split()


def fault_of_words(words: Sequence[Any]) -> str | None:
    """What is wrong with the words of a sentence."""
    if not words:
        return NO_WORDS
    for place, word in enumerate(words, 1):
        if not isinstance(word, str):
            return f"token {place} is not a text"
        if not word.strip():
            return f"token {place} is empty"
        if "\n" in word:
            return f"token {place} holds a line break"
    return None


def sound(rows: Rows, tokens: str, names: str, scheme: tags.Scheme) -> Rows:
    """The rows that have words and as many tags, written as the scheme says."""
    faults: list[str | None] = []
    for i, row in enumerate(rows):
        words, given = values_of(row[tokens]), values_of(row[names])
        reason = fault_of_words(words)
        if reason is None and len(words) != len(given):
            reason = f"{len(words)} tokens, but {len(given)} tags"
        if reason is None and (breach := tags.breach(given, scheme)):
            reason = at_word(rows, i, words, *breach)
        faults.append(reason)
    return keep_good(rows, faults)


def of_kinds(rows: Rows, tokens: str, names: str, kinds: Sequence[str]) -> Rows:
    """The rows whose entities are of known types."""
    known, listed = set(kinds), ", ".join(kinds[:10])
    more = f" and {len(kinds) - 10} more" if len(kinds) > 10 else ""
    faults: list[str | None] = []
    for i, row in enumerate(rows):
        given = values_of(row[names])
        kinds_given = [tags.split(tag)[1] for tag in given]
        place = next((p for p, kind in enumerate(kinds_given) if kind and kind not in known), None)
        if place is None:
            faults.append(None)
            continue
        reason = f"tag {given[place]!r} is of none of the types {listed}{more}"
        faults.append(at_word(rows, i, values_of(row[tokens]), place, reason))
    return keep_good(rows, faults)


def at_word(rows: Rows, row: int, words: Sequence[str], place: int, reason: str) -> str:
    """The reason with its word; in columns the row's number becomes that of the word's line."""
    file = rows.files[rows.file_of[row]]
    if rows.source.startswith("conll:") or format_of(file)[0] == "conll":
        rows.line_of[row] += place
    return f"word {place + 1} ({words[place]!r}): {reason}"


def new_sentence(row: Any, tokens: str, where: str) -> tuple[str, list[Span]]:
    """The text of a row to be predicted, and where its words lie.

    A text, or a dict with one as "text", is split; a dict with `tokens` gives its words, and the
    text is they with spaces between. Raises DataError for a row without words.
    """
    if isinstance(row, dict) and tokens in row:
        words = row[tokens]
        if not isinstance(words, list):
            raise DataError(f"{where}: {tokens!r} is not a list of texts")
        if reason := fault_of_words(words):
            raise DataError(f"{where}: {reason}")
        ends, place = [], 0
        for word in words:
            ends.append((place, place + len(word)))
            place += len(word) + 1
        return " ".join(words), ends
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text, or a row with {tokens!r} or 'text'")
    spans = split_text(text)
    if not spans:
        raise DataError(f"{where}: {NO_WORDS}")
    return text, spans

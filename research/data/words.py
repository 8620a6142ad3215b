"""Sentences that are lists of words, as examples of sub-words; a long one as several windows."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from research.data import cache
from research.data.tokenize import BEGINS, CHUNK, CONTINUES, SPECIAL, Encoded, Template
from research.data.vocabulary import Vocabulary
from research.errors import ConfigError, DataError

# Bumped whenever the same sentences would give other arrays.
VERSION = 1
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Examples that are windows, those of a sentence one after another.

    `places` int32 [tokens]: the number of a word in its sentence at the first sub-word of each word
    that the window answers for, -1 elsewhere. Every word is answered for once, in order.
    """

    encoded: Encoded
    places: np.ndarray


def encode_words(
    sentences: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    stride: int,
    keep_in: Path | None = None,
) -> Windows:
    """The sub-words of sentences, each word cut by itself, in windows of `max_length` tokens.

    Neighbouring windows share up to `stride` tokens, and of what they share each answers for the
    half that is further from its edge. A word without sub-words is the unknown token; of one that
    is longer than a window the rest is lost. With `keep_in` the arrays are kept there.
    """
    template = Template.of(tokenizer, 1)
    room = max_length - template.size
    if room < 2:
        raise ConfigError(
            f"data.max_length is {max_length}, but {template.size} special tokens and two words do "
            "not fit into that"
        )
    vocabulary = Vocabulary.of(tokenizer)
    key = content_key(sentences, f"{VERSION} {vocabulary.fingerprint} {max_length} {stride}")

    def make() -> tuple[cache.Arrays, dict[str, int]]:
        builder = Builder(template, pieces_of(sentences, tokenizer, vocabulary, room), room, stride)
        for number, words in enumerate(sentences):
            builder.add(number, words)
        return builder.arrays(), {"lost": builder.lost}

    arrays, facts = make() if keep_in is None else cache.load_or_make(keep_in / key, make)
    encoded = Encoded.of(arrays, facts, key)
    return Windows(encoded=encoded, places=arrays["places"])


def content_key(sentences: Sequence[Sequence[str]], settings: str) -> str:
    """32 hex digits over every word, in order, and the settings."""
    digest = hashlib.sha256(f"words {settings} {len(sentences)}\n".encode())
    for words in sentences:
        # No word holds a line break; the count keeps sentences apart.
        digest.update("\n".join([str(len(words)), *words, ""]).encode())
    return digest.hexdigest()[:32]


def pieces_of(
    sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, vocabulary: Vocabulary, room: int
) -> dict[str, list[int]]:
    """The sub-words of every distinct word, at least one each."""
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(sentences)))
    before = space_before(tokenizer)
    found: dict[str, list[int]] = {}
    for start in range(0, len(distinct), CHUNK):
        chunk = distinct[start : start + CHUNK]
        given = [[before + word] for word in chunk]
        encodings = tokenizer.encode_batch(given, True, add_special_tokens=False)
        for word, encoding in zip(chunk, encodings):
            found[word] = encoding.ids or ([] if vocabulary.unk is None else [vocabulary.unk])
    for word, ids in found.items():
        if not ids:
            raise DataError(f"the tokenizer makes nothing of the word {word!r}")
    return found


def space_before(tokenizer: Tokenizer) -> str:
    """What must stand before a word so that it is cut as within a text: a space where the tokenizer
    takes spaces as letters and adds none (byte-level BPE)."""
    step = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    bare = any(s.get("type") == "ByteLevel" and not s["add_prefix_space"] for s in steps)
    return " " if bare else ""


class Builder:
    """Flat arrays in the making."""

    def __init__(
        self, template: Template, pieces: dict[str, list[int]], room: int, stride: int
    ) -> None:
        self.template, self.pieces, self.room, self.stride = template, pieces, room, stride
        self.tokens, self.places = array("i"), array("i")
        self.types, self.words = bytearray(), bytearray()
        self.ends, self.row_of = array("q", [0]), array("q")
        self.lost = 0

    def add(self, number: int, words: Sequence[str]) -> None:
        """Takes in sentence `number`."""
        bodies = [self.pieces[word] for word in words]
        self.lost += sum(max(0, len(body) - self.room) for body in bodies)
        bodies = [body[: self.room] for body in bodies]
        sizes = [len(body) for body in bodies]
        for (start, end), (first, last) in windows(sizes, self.room, self.stride):
            self.edge(0)
            for place in range(start, end):
                body = bodies[place]
                self.tokens.extend(body)
                self.places.append(place if first <= place < last else -1)
                self.places.extend([-1] * (len(body) - 1))
                self.words.extend(bytes([BEGINS] + [CONTINUES] * (len(body) - 1)))
                self.types.extend(bytes([self.template.text_types[0]]) * len(body))
            self.edge(1)
            self.ends.append(len(self.tokens))
            self.row_of.append(number)

    def edge(self, side: int) -> None:
        """The special tokens before (0) or after (1) the words."""
        part = self.template.parts[side]
        self.tokens.extend(part)
        self.types.extend(self.template.part_types[side])
        self.words.extend(bytes([SPECIAL]) * len(part))
        self.places.extend([-1] * len(part))

    def arrays(self) -> cache.Arrays:
        """The arrays of Windows."""
        return {
            "tokens": np.asarray(self.tokens, np.int32),
            "places": np.asarray(self.places, np.int32),
            "types": np.frombuffer(bytes(self.types), np.uint8),
            "words": np.frombuffer(bytes(self.words), np.uint8),
            "offsets": np.asarray(self.ends, np.int64),
            "row_of": np.asarray(self.row_of, np.int64),
        }


def windows(sizes: Sequence[int], room: int, stride: int) -> list[tuple[Span, Span]]:
    """The words [start, end) that each window shows, and those of them that it answers for.

    `sizes` are the words' tokens, each at most `room`. Windows share at most `stride` tokens, and
    never more than half of `room`, so that what each answers for lies where it has most context.
    """
    ends = [0, *itertools.accumulate(sizes)]
    share = min(stride, room // 2)
    shown: list[Span] = []
    start = 0
    while True:
        end = bisect_right(ends, ends[start] + room) - 1
        shown.append((start, end))
        if end == len(sizes):
            break
        # As far back as may be shared, and as leaves room for the next word.
        back = max(ends[end] - share, ends[end + 1] - room)
        start = max(start + 1, bisect_left(ends, back))
    cuts = [0]
    for (_, end), (start, _) in itertools.pairwise(shown):
        middle = (ends[start] + ends[end]) / 2
        cut = next(word for word in range(start, end + 1) if word == end or ends[word] >= middle)
        cuts.append(max(cut, cuts[-1]))
    cuts.append(len(sizes))
    return list(zip(shown, itertools.pairwise(cuts)))


def split_text(text: str) -> list[Span]:
    """Where the words of a text lie: [start, end) in characters.

    What white space separates is a word, without the punctuation and symbols at its edges, which
    are words of one character each; an @ or # that begins one stays. Ideographs stand alone.
    """
    found: list[Span] = []
    for blank, group in itertools.groupby(range(len(text)), lambda i: text[i].isspace()):
        if blank:
            continue
        places = list(group)
        start, end = places[0], places[-1] + 1
        head = start
        while head < end - 1 and is_sign(text[head]) and text[head] not in "@#":
            head += 1
        tail = end
        while tail > head + 1 and is_sign(text[tail - 1]):
            tail -= 1
        found += [(i, i + 1) for i in range(start, head)]
        found += split_ideographs(text, head, tail)
        found += [(i, i + 1) for i in range(tail, end)]
    return found


def split_ideographs(text: str, start: int, end: int) -> list[Span]:
    """One word, or several where it holds ideographs."""
    spans: list[Span] = []
    for alone, group in itertools.groupby(range(start, end), lambda i: is_ideograph(text[i])):
        places = list(group)
        spans += [(i, i + 1) for i in places] if alone else [(places[0], places[-1] + 1)]
    return spans


def is_sign(character: str) -> bool:
    """Punctuation or a symbol."""
    return unicodedata.category(character)[0] in "PS"


def is_ideograph(character: str) -> bool:
    """A letter of Chinese, as BERT's tokenizer has them."""
    return any(
        low <= ord(character) <= high
        for low, high in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
    )

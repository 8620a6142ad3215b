"""Texts to token ids: one example after another in flat arrays, kept in a cache by content."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from research.data import cache
from research.data.by_word import ids_by
from research.data.cache import Growing
from research.data.pack import common_lengths
from research.data.vocabulary import Vocabulary, load_tokenizer, train_wordpiece
from research.errors import ConfigError

__all__ = ["Encoded", "Vocabulary", "encode", "load_tokenizer", "train_wordpiece"]

CHUNK, MANY = 1024, 2**20
# Bumped whenever the same texts would give other arrays.
VERSION = 1
CONTINUES, BEGINS, SPECIAL = 0, 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Examples as flat arrays; example i is [offsets[i], offsets[i + 1]) of the first three.

    `tokens` int32, `types` uint8, `words` uint8 (2 a special token, 1 a word's first token, 0 any
    other); `offsets` int64 [examples + 1]; `row_of` int64 [examples], the text an example is from.
    `blank` are the texts without a token: they are no examples. `truncated` counts the texts that
    lost tokens, `lost` these tokens. `fingerprint` is over texts, tokenizer and settings.
    """

    tokens: np.ndarray
    types: np.ndarray
    words: np.ndarray
    offsets: np.ndarray
    row_of: np.ndarray
    blank: np.ndarray
    truncated: int
    lost: int
    fingerprint: str

    @classmethod
    def of(cls, arrays: cache.Arrays, facts: dict[str, int], fingerprint: str) -> Encoded:
        """What a builder made or the cache kept; where nothing is said, nothing was left out."""
        return cls(
            tokens=arrays["tokens"],
            types=arrays["types"],
            words=arrays["words"],
            offsets=arrays["offsets"],
            row_of=arrays["row_of"],
            blank=arrays.get("blank", np.zeros(0, np.int64)),
            truncated=facts.get("truncated", 0),
            lost=facts["lost"],
            fingerprint=fingerprint,
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [examples]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def seen(self) -> np.ndarray:
        """The ids of the tokens that there are: int32 [U], ascending. Others with small ids fill
        them up to one of few numbers, so that like data have as many."""
        counts = np.zeros(1, np.int64)
        for start in range(0, len(self.tokens), MANY):
            part = np.bincount(self.tokens[start : start + MANY], minlength=len(counts))
            part[: len(counts)] += counts
            counts = part
        own = np.flatnonzero(counts)
        more = common_lengths(len(own))[-1] - len(own)
        return np.union1d(own, np.flatnonzero(counts == 0)[:more]).astype(np.int32)


@dataclass(frozen=True)
class Template:
    """What a tokenizer puts around texts: ids before, between and after, and all types."""

    parts: tuple[tuple[int, ...], ...]
    part_types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def size(self) -> int:
        """Special tokens an example."""
        return sum(len(part) for part in self.parts)

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: int) -> Template:
        """Reads it off the encoding of one text, or of a pair."""
        for probe in ("a", "0", "."):
            bare = tokenizer.encode(probe, add_special_tokens=False)
            if bare.ids:
                pair = probe if texts == 2 else None
                return cls.split(tokenizer.encode(probe, pair), texts)
        raise ConfigError("the tokenizer makes no tokens of 'a', '0' or '.'")

    @classmethod
    def split(cls, encoding: Encoding, texts: int) -> Template:
        """Cuts an encoding of probes at the probes."""
        owner = encoding.sequence_ids
        cuts = [(owner.index(i), len(owner) - owner[::-1].index(i)) for i in range(texts)]
        starts = [0, *(end for _, end in cuts)]
        ends = [*(start for start, _ in cuts), len(owner)]
        return cls(
            tuple(tuple(encoding.ids[s:e]) for s, e in zip(starts, ends)),
            tuple(tuple(encoding.type_ids[s:e]) for s, e in zip(starts, ends)),
            tuple(encoding.type_ids[start] for start, _ in cuts),
        )


def encode(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    long: Literal["truncate", "split"] = "truncate",
    keep_in: Path | None = None,
) -> Encoded:
    """Tokens of texts, or of pairs of them, with the tokenizer's own special tokens.

    An example has at most `max_length` tokens, special ones included: a longer text is truncated
    (of a pair, the longer one first) or, with `long="split"`, becomes several examples and loses
    nothing. With `keep_in` the arrays are kept there and mapped into memory.
    """
    template = Template.of(tokenizer, 1 if pairs is None else 2)
    if max_length < template.size + (1 if pairs is None else 2):
        raise ConfigError(
            f"data.max_length is {max_length}, but {template.size} special tokens and a text "
            "do not fit into that"
        )
    if long == "split" and pairs is not None:
        raise ConfigError("data.long='split' is for single texts; pairs can only be truncated")
    vocabulary = Vocabulary.of(tokenizer)
    key = content_key(texts, pairs, f"{VERSION} {vocabulary.fingerprint} {max_length} {long}")

    def make() -> tuple[cache.Arrays, dict[str, int]]:
        builder = Builder(template, vocabulary, max_length, long, keep_in)
        for number, bodies in bodies_of(texts, pairs, tokenizer):
            builder.add(number, bodies)
        return builder.arrays(), {"truncated": builder.truncated, "lost": builder.lost}

    arrays, facts = make() if keep_in is None else cache.load_or_make(keep_in / key, make)
    return Encoded.of(arrays, facts, key)


def content_key(texts: Sequence[str], pairs: Sequence[str] | None, settings: str) -> str:
    """32 hex digits over every text, in order, and the settings."""
    digest = hashlib.sha256(f"{settings} {pairs is not None} {len(texts)}\n".encode())
    for group in (texts, pairs or ()):
        for text in group:
            raw = text.encode("utf-8")
            digest.update(b"%d:" % len(raw))
            digest.update(raw)
    return digest.hexdigest()[:32]


def bodies_of(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: Tokenizer
) -> Iterator[tuple[int, list[list[int]]]]:
    """(number, ids of the text or of both texts without special tokens), a chunk at a time."""
    ids = ids_by(tokenizer)
    for start in range(0, len(texts), CHUNK):
        sides = (texts,) if pairs is None else (texts, pairs)
        groups = [ids(side[start : start + CHUNK]) for side in sides]
        for i, bodies in enumerate(zip(*groups)):
            yield start + i, list(bodies)


class Builder:
    """Flat arrays in the making, in files of `folder` or in memory where there is none."""

    def __init__(
        self,
        template: Template,
        vocabulary: Vocabulary,
        max_length: int,
        long: str,
        folder: Path | None = None,
    ) -> None:
        self.template, self.vocabulary, self.long = template, vocabulary, long
        self.room = max_length - template.size
        kinds = {"tokens": np.int32, "types": np.uint8, "words": np.uint8}
        kinds |= {"offsets": np.int64, "row_of": np.int64}
        self.made = {name: Growing(folder, kind) for name, kind in kinds.items()}
        self.made["offsets"].append(np.zeros(1, np.int64))
        self.held: list[tuple[int, list[list[int]]]] = []
        self.blank = array("q")
        self.truncated = self.lost = 0

    def add(self, number: int, bodies: list[list[int]]) -> None:
        """Takes in text `number`."""
        if not all(bodies):
            self.blank.append(number)
            return
        total = sum(len(body) for body in bodies)
        if self.long == "split":
            (body,) = bodies
            for start in range(0, total, self.room):
                self.put(number, [body[start : start + self.room]])
            return
        if total > self.room:
            self.truncated += 1
            self.lost += total - self.room
            bodies = truncate(bodies, self.room)
        self.put(number, bodies)

    def put(self, number: int, bodies: list[list[int]]) -> None:
        """Appends one example."""
        self.held.append((number, bodies))
        if len(self.held) == CHUNK:
            self.write()

    def write(self) -> None:
        """Lays the held examples out one after another: special tokens, text, special tokens..."""
        template, held, self.held = self.template, self.held, []
        if not held:
            return
        sides = range(len(template.text_types))
        sizes = np.array([[len(bodies[i]) for i in sides] for _, bodies in held], np.int64)
        ends = np.cumsum(sizes.sum(1) + template.size)
        total = int(ends[-1])
        tokens, types = np.empty(total, np.int32), np.empty(total, np.uint8)
        words = np.full(total, SPECIAL, np.uint8)
        place = ends - sizes.sum(1) - template.size
        for i, (part, part_types) in enumerate(zip(template.parts, template.part_types)):
            for token, kind in zip(part, part_types):
                tokens[place], types[place] = token, kind
                place = place + 1
            if i in sides:
                within = np.arange(sizes[:, i].sum()) - np.repeat(
                    np.cumsum(sizes[:, i]) - sizes[:, i], sizes[:, i]
                )
                cells = np.repeat(place, sizes[:, i]) + within
                text = chain.from_iterable(bodies[i] for _, bodies in held)
                tokens[cells] = np.fromiter(text, np.int32, len(cells))
                types[cells] = template.text_types[i]
                words[cells] = np.where(self.vocabulary.continues[tokens[cells]], CONTINUES, BEGINS)
                # A text begins with a word even where it was cut in the middle of one.
                words[place[sizes[:, i] > 0]] = BEGINS
                place = place + sizes[:, i]
        made: cache.Arrays = {"tokens": tokens, "types": types, "words": words}
        made["offsets"] = self.made["tokens"].size + ends
        made["row_of"] = np.array([number for number, _ in held], np.int64)
        for name, values in made.items():
            self.made[name].append(values)

    def arrays(self) -> cache.Arrays:
        """The arrays of an Encoded; nothing can be added any more."""
        self.write()
        found = {name: values.mapped() for name, values in self.made.items()}
        for values in self.made.values():
            values.file.close()
        return found | {"blank": np.asarray(self.blank, np.int64)}


def truncate(bodies: list[list[int]], room: int) -> list[list[int]]:
    """The first `room` tokens; of a pair, the longer text gives way until both are equal."""
    if len(bodies) == 1:
        return [bodies[0][:room]]
    first, second = (len(body) for body in bodies)
    short = min(first, second, room)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    first, second = (short, long) if first <= second else (long, short)
    return [bodies[0][:first], bodies[1][:second]]

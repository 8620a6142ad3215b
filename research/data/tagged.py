"""Sentences with a tag a word, as training streams and evaluation passes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.data import cache, labels, tags
from research.data.batches import Examples
from research.data.beside import add_columns
from research.data.dataset import SPLITS, Dataset, Signature
from research.data.formats import Row
from research.data.lexicon import keep, size_of, spell, word_tokenizer
from research.data.rows import Rows, keep_good
from research.data.sentences import Sentences, new_sentence, of_kinds, sound, values_of
from research.data.sources import read_rows, signature
from research.data.tags import Scheme
from research.data.vectors import open_vectors
from research.data.vocabulary import tokenizer_of
from research.data.words import encode_words
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Tagged(Dataset):
    """Rows with a list of words and one of their tags (see `read_rows` for the sources).

    `tokens`, `tags` and `intent` name columns: of .conll files, where `columns` names them all, of
    JSON with lists, of tables with texts that spaces separate, and of files beside the tokens' own
    (`beside`, see `add_columns`). Files are written in `scheme`, strictly; what is learned is
    `target`. The types of entities are those of train, sorted, or `types`; `more_types` are others
    that dev and test may hold, likewise `intents` and `more_intents`. A sentence of over
    `max_length` tokens becomes windows that share up to `stride`.

    `tokenizer` as for `load_tokenizer`, or "words:30000": the most frequent words of train that
    occur twice, and those of any split that have a vector in `vectors`, a GloVe text file, which
    are what the trunk's table starts from. `characters` is how many of a word's bytes the batches
    hold. The other fields are those of `Dataset`.
    """

    tokens: str = "tokens"
    tags: str = "tags"
    intent: str | None = None
    columns: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    scheme: Scheme = "BIO"
    target: Literal["BIO", "IOBES"] = "BIO"
    types: tuple[str, ...] = ()
    more_types: tuple[str, ...] = ()
    intents: tuple[str, ...] = ()
    more_intents: tuple[str, ...] = ()
    vectors: str = ""
    characters: int = 0
    stride: int = 32

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """New rows in their order: a text, which is split into words (`split_text`), or a dict with
        `tokens`, a list of words, or with a "text".

        Raises DataError naming the row without words; `where` is the file and line of the first.
        """
        texts, words, spans = [], [], []
        for number, row in enumerate(rows, where[1]):
            text, found = new_sentence(row, self.tokens, f"{where[0]}:{number}")
            texts.append(text)
            spans.append(found)
            words.append([text[start:end] for start, end in found])
        source = Sentences(words=words, texts=texts, spans=spans)
        return self.as_examples(source, keep=False)

    def as_examples(self, source: Sentences, *, keep: bool, dropped: int = 0) -> Examples:
        """Sentences as a batch holds them.

        Cells: `tags`, the number of a word's tag at its first token and -1 elsewhere, and
        `characters` [tokens, W], its bytes + 1. Slots: `weights`; `opens` and `closes`, 1 where a
        window holds a sentence's first or last word; `intents`.
        """
        found = encode_words(
            source.words,
            tokenizer_of(self.needed_tokenizer())[0],
            max_length=self.max_length,
            stride=self.stride,
            keep_in=cache.directory(self.cache) if keep else None,
        )
        encoded, places = found.encoded, found.places
        row_of = np.asarray(encoded.row_of)
        first = np.cumsum([0, *map(len, source.words)])
        word = np.repeat(first[row_of], encoded.lengths) + places
        heads = places >= 0
        numbers = {tag: i for i, tag in enumerate(self.tag_names())} if source.tags else {}
        flat = np.array([numbers[tag] for row in source.tags for tag in row], np.int32)
        cells = {"tags": np.where(heads, flat[word] if source.tags else 0, -1).astype(np.int32)}
        if self.characters:
            cells["characters"] = spell(source.words, self.characters)[word]
            cells["characters"][~heads] = 0
        edge = np.diff(row_of, prepend=-1) != 0
        slots = {
            "weights": np.full(len(row_of), bool(source.tags), np.float32),
            "opens": edge.astype(np.int32),
            "closes": np.append(edge[1:], True).astype(np.int32),
        }
        if source.intents:
            kinds = {name: i for i, name in enumerate(self.intent_names())}
            slots["intents"] = np.array([kinds[name] for name in source.intents], np.int32)[row_of]
        elif self.intent is not None:
            slots["intents"] = np.zeros(len(row_of), np.int32)
        units = None if edge.all() else row_of
        return Examples(
            encoded=encoded, slots=slots, cells=cells, units=units, source=source, dropped=dropped
        )

    def facts(self) -> dict[str, object]:
        """`labels`, the tags; `scheme` they are in; `intents`; and the facts of the tokenizer."""
        facts = {"labels": self.tag_names(), "scheme": self.target}
        return facts | {"intents": self.intent_names()} | self.vocabulary.facts()

    def text_of(self, split: str, example: int) -> Row:
        """The row that an example (the `ids` of a batch) is from, for reports."""
        return {self.tokens: self.quote(split, example)}

    def quote(self, split: str, example: int) -> str:
        """The words of an example's sentence."""
        examples = examples_of(self, split, self.signature(split))
        return " ".join(examples.source.words[int(examples.encoded.row_of[example])])

    def tag_names(self) -> tuple[str, ...]:
        """All tags that may be told."""
        kinds = self.types or train_kinds(self, self.signature("train"))
        return tags.names(tuple(dict.fromkeys((*kinds, *self.more_types))), self.target)

    def intent_names(self) -> tuple[str, ...]:
        """All intents; none without a column of them."""
        if self.intent is None:
            return ()
        known = self.intents or train_intents(self, self.signature("train"))
        return tuple(dict.fromkeys((*known, *self.more_intents)))

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        for name in ("characters", "stride"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} is {getattr(self, name)}, but must not be negative")

        for item in self.beside:
            if not all(item.partition("=")):
                raise ConfigError(f"data.beside: {item!r} is not column=file")

    def needed_tokenizer(self) -> str:
        """The tokenizer; one of words is made where there is none yet. Raises ConfigError where
        none is set."""
        given = super().needed_tokenizer()
        if not given.startswith("words:"):
            return given
        splits = [split for split in SPLITS if getattr(self, split)]
        found = tuple(self.signature(split) for split in splits)
        return lexicon_of(self, found, signature(self.vectors) if self.vectors else ())


@functools.lru_cache(maxsize=8)
def usable_rows(data: Tagged, split: str, found: Signature) -> Rows:
    """The rows of a split with words and tags that follow the scheme."""
    data.check()
    beside = {item.partition("=")[0] for item in data.beside}
    wanted = [data.tokens, data.tags, *([data.intent] if data.intent else [])]
    rows = read_rows(
        data.source(split),
        columns=data.columns,
        need=tuple(name for name in wanted if name not in beside),
        lists=(data.tokens, data.tags),
        max_bad_rows=data.max_bad_rows,
    )
    return sound(add_columns(rows, data.beside), data.tokens, data.tags, data.scheme)


@functools.lru_cache(maxsize=8)
def train_kinds(data: Tagged, signature: Signature) -> tuple[str, ...]:
    """The types of entities in train, sorted."""
    rows = usable_rows(data, "train", signature)
    return tuple(
        sorted({kind for row in rows for kind in tags.kinds_of(values_of(row[data.tags]))})
    )


@functools.lru_cache(maxsize=8)
def train_intents(data: Tagged, found: Signature) -> tuple[str, ...]:
    """The intents in train, sorted."""
    assert data.intent is not None
    return labels.infer(row[data.intent] for row in usable_rows(data, "train", found))


@functools.lru_cache(maxsize=8)
def examples_of(data: Tagged, split: str, found: Signature) -> Examples:
    """The encoded sentences of a split with what is to be learned of them."""
    rows = usable_rows(data, split, found)
    rows = of_kinds(rows, data.tokens, data.tags, tags.kinds_of(data.tag_names()))
    if data.intent is not None:
        given = [row[data.intent] for row in rows]
        rows = keep_good(rows, labels.read(given, data.intent_names())[1])
    if split == "train" and data.limit is not None:
        rows = rows.take(range(min(data.limit, len(rows))))
    source = Sentences(
        words=[values_of(row[data.tokens]) for row in rows],
        tags=[tags.convert(values_of(row[data.tags]), data.target) for row in rows],
        intents=[row[data.intent] for row in rows] if data.intent is not None else [],
    )
    return data.as_examples(source, keep=True, dropped=len(rows.dropped))


@functools.lru_cache(maxsize=8)
def lexicon_of(data: Tagged, found: tuple[Signature, ...], vectors: Signature) -> str:
    """The file of the tokenizer "words:SIZE"."""
    assert data.tokenizer is not None
    known = open_vectors(data.vectors)[0].keys() if data.vectors else set()
    first, *others = (
        [values_of(row[data.tokens]) for row in usable_rows(data, split, signature)]
        for split, signature in zip((s for s in SPLITS if getattr(data, s)), found)
    )
    more = (words for rows in others for words in rows)
    return str(keep(word_tokenizer(first, more, set(known), size_of(data.tokenizer))))

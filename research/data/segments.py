"""Pairs of segments of documents: does the second follow the first, or are they in order?"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.data import cache
from research.data.batches import Arrangement, Examples
from research.data.dataset import BLANK, Dataset, Signature
from research.data.formats import Quoting
from research.data.sources import read_rows
from research.data.tokenize import Builder, Encoded, Template, bodies_of, content_key, encode
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError

# Bumped whenever the same documents would give other pairs.
VERSION = 1
LABELS = {"next": ("next", "other"), "order": ("in order", "swapped")}
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
Chunk = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Segments(Dataset):
    """Two segments an example; a document is a row (of a text file, a line) with the column `text`.

    As many whole sentences of a document as `max_length` has room for are cut in two at one of
    their ends. For half of the examples, by chance, the second segment is one of another document
    (`objective` "next", Devlin et al., 2019), or the two change places ("order", Lan et al., 2020).
    That is so `copies` times, each with draws of its own (BERT's were ten): pairs are a function of
    the documents and `pair_seed`, and what a step holds one of (seed, step). A stretch of one
    sentence gives no pair. `words` adds word numbers to the batches. New rows for predictions have
    the columns `first` and `second`. The other fields are those of `Dataset`; `limit` is in rows.
    """

    text: str = "text"
    first: str = "first"
    second: str = "second"
    objective: Literal["next", "order"] = "next"
    copies: int = 1
    pair_seed: int = 0
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    words: bool = False

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """New pairs in their order, without labels. Raises DataError naming the row that is none;
        `where` is the file and the line of the first."""
        columns = (self.first, self.second)
        for number, row in enumerate(rows, where[1]):
            for name in columns:
                if not isinstance(row, dict) or not str(row.get(name, "")).strip():
                    raise DataError(f"{where[0]}:{number}: expected the texts {columns}, no {name}")
        one, two = ([row[name] for row in rows] for name in columns)
        tokenizer = tokenizer_of(self.needed_tokenizer())[0]
        encoded = encode(one, two, tokenizer, max_length=self.max_length)
        if len(encoded.blank):
            raise DataError(f"{where[0]}:{where[1] + int(encoded.blank[0])}: {BLANK}")
        nothing = np.zeros(len(encoded.row_of))
        slots = {"labels": nothing.astype(np.int32), "weights": nothing.astype(np.float32)}
        return Examples(encoded=encoded, slots=slots)

    def facts(self) -> dict[str, object]:
        """`labels`, and what `Vocabulary.facts` says."""
        return {"labels": LABELS[self.objective], **self.vocabulary.facts()}

    def quote(self, split: str, example: int) -> str:
        """The two segments of an example, as their tokens spell them."""
        encoded = self.examples(split).encoded
        here = slice(encoded.offsets[example], encoded.offsets[example + 1])
        tokenizer = tokenizer_of(self.needed_tokenizer())[0]
        return str(tokenizer.decode(encoded.tokens[here].tolist(), skip_special_tokens=False))

    @property
    def arrangement(self) -> Arrangement:
        """How examples become arrays."""
        return Arrangement(
            layout=self.layout, row_length=self.row_length, shapes=self.shapes, words=self.words
        )

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        self.check_positive("copies")


@functools.lru_cache(maxsize=8)
def examples_of(data: Segments, split: str, found: Signature) -> Examples:
    """The pairs of a split, kept in the cache by the contents of the documents."""
    data.check()
    rows = read_rows(
        data.source(split),
        columns=data.columns,
        need=(data.text,),
        quoting=data.quoting,
        max_bad_rows=data.max_bad_rows,
    )
    count = min(len(rows), data.limit) if data.limit and split == "train" else len(rows)
    documents = [str(rows[i][data.text]) for i in range(count)]
    tokenizer, vocabulary = tokenizer_of(data.needed_tokenizer())
    template = Template.of(tokenizer, 2)
    room = data.max_length - template.size
    if room < 2:
        raise ConfigError(f"data.max_length is {data.max_length}: no room for two segments")
    settings = f"{VERSION} {vocabulary.fingerprint} {data.max_length} {data.objective}"
    key = content_key(documents, None, f"{settings} {data.copies} {data.pair_seed}")

    def make() -> tuple[cache.Arrays, dict[str, int]]:
        builder = Builder(template, vocabulary, data.max_length, "truncate")
        chunks, owners = chunks_of(documents, tokenizer, room)
        labels = []
        for owner, one, two, label in pairs(chunks, owners, data, room):
            builder.put(owner, [one, two])
            labels.append(label)
        return builder.arrays() | {"labels": np.array(labels, np.int32)}, {"lost": 0}

    arrays, facts = cache.load_or_make(cache.directory(data.cache) / key, make)
    if not len(arrays["labels"]):
        raise DataError(f"{data.source(split)}: no document has two sentences")
    labels = np.asarray(arrays["labels"])
    return Examples(
        encoded=Encoded.of(arrays, facts, key),
        slots={"labels": labels, "weights": np.ones(len(labels), np.float32)},
        dropped=len(rows.dropped),
    )


def chunks_of(documents: list[str], tokenizer: Any, room: int) -> tuple[list[Chunk], list[int]]:
    """Runs of two or more sentences of up to `room` tokens together, and the document of each.

    A sentence of more than half the room is cut to it.
    """
    split = [[s for s in SENTENCE.split(text) if s and s.strip()] for text in documents]
    owner = [number for number, found in enumerate(split) for _ in found]
    chunks: list[Chunk] = []
    owners: list[int] = []
    now: Chunk = []
    last, size = -1, 0
    for i, (body,) in bodies_of([s for found in split for s in found], None, tokenizer):
        body = body[: room // 2]
        if owner[i] != last or size + len(body) > room:
            if len(now) > 1:
                chunks.append(now)
                owners.append(last)
            now, last, size = [], owner[i], 0
        if body:
            now.append(body)
            size += len(body)
    if len(now) > 1:
        chunks.append(now)
        owners.append(last)
    return chunks, owners


def pairs(
    chunks: list[Chunk], owners: list[int], data: Segments, room: int
) -> Iterator[tuple[int, list[int], list[int], int]]:
    """(document, first, second, label) of every chunk, `copies` times; 0 is the true pair."""
    if not chunks:
        return
    # Philox's raw output is what numpy promises never to change (NEP 19).
    stream = np.random.Philox(key=np.array([data.pair_seed % 2**64, 0], np.uint64))
    draws = stream.random_raw(4 * data.copies * len(chunks)).reshape(len(chunks), data.copies, 4)
    bounds = np.searchsorted(owners, owners, "left"), np.searchsorted(owners, owners, "right")
    if data.objective == "next" and bounds[1][0] == len(chunks):
        raise DataError(f"{data.train}: a segment of another document is needed, and there is none")
    for i, chunk in enumerate(chunks):
        for flip, cut, other, start in draws[i].tolist():
            at = 1 + cut % (len(chunk) - 1)
            one, two = flat(chunk[:at]), flat(chunk[at:])
            label = flip >> 63
            if label and data.objective == "order":
                one, two = two, one
            elif label:
                low, high = int(bounds[0][i]), int(bounds[1][i])
                number = other % (len(chunks) - (high - low))
                foreign = chunks[number if number < low else number + high - low]
                two = flat(foreign[start % len(foreign) :])[: room - len(one)]
            yield owners[i], one, two, label


def flat(sentences: Chunk) -> list[int]:
    """The tokens of sentences in a row."""
    return [token for sentence in sentences for token in sentence]

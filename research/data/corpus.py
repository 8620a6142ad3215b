"""Corpora for pre-training: documents of many sources, filtered, de-duplicated, packed, mixed."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data import cache, documents
from research.data.batches import Arrangement, Examples
from research.data.blocks import Frame, Segments, Stream
from research.data.dataset import BLANK, Dataset, Signature
from research.data.documents import Reader
from research.data.duplicates import Exact, MinHash, overlapping, shingles
from research.data.formats import Document, Quoting
from research.data.mixture import Mixture
from research.data.quality import Filter
from research.data.tokenize import Encoded, encode
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError

# Bumped whenever the same documents would give other arrays.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Corpus(Dataset):
    """Documents for language modelling, in blocks of `max_length` tokens, each a row of a batch.

    A source is one of `read_rows` or a folder (see `Reader` for `text`, `document`, `columns` and
    `quoting`). In place of `train` a `mixture` may name several with weights: of source s an epoch
    draws the same number of blocks every time, within one of its share. `limit` is documents of a
    source of train. `batch_size` counts blocks.

    With `segments="documents"` a block holds pieces of documents, each an example with attention
    and positions of its own; with "blocks" it is one example. Only the last block of a source has
    padding. `end` is the token after every document; without one the tokenizer's special tokens
    stand around it. Training documents are left out that a filter gives a `reason` for, that are
    `duplicates`, or that share a run of `overlap` words with dev or test; all are counted in the
    audit. `words` adds word numbers to the batches. The other fields are those of `Dataset`.

    Slots: `weights`, `bytes` (UTF-8, of the example's text) and, of a mixture, `sources`.
    """

    mixture: tuple[tuple[str, float], ...] = ()
    text: str = "text"
    document: Document = "line"
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    segments: Segments = "documents"
    end: str | None = None
    filters: tuple[Filter, ...] = ()
    duplicates: Exact | MinHash | None = None
    overlap: int | None = None
    words: bool = False

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """New rows in their order, each a text or a dict with one, cut off after `max_length`.

        Raises DataError naming the row that has no text. Nothing is kept in the cache.
        """
        texts: list[str] = []
        for number, row in enumerate(rows, where[1]):
            text = row.get(self.text) if isinstance(row, dict) else row
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where[0]}:{number}: {self.text!r} is not a text, or empty")
            texts.append(text)
        tokenizer = tokenizer_of(self.needed_tokenizer())[0]
        encoded = encode(texts, None, tokenizer, max_length=self.max_length)
        if len(encoded.blank):
            raise DataError(f"{where[0]}:{where[1] + int(encoded.blank[0])}: {BLANK}")
        sizes = np.array([len(text.encode("utf-8")) for text in texts], np.int32)
        weights = np.ones(len(texts), np.float32)
        return Examples(encoded=encoded, slots={"weights": weights, "bytes": sizes})

    def quote(self, split: str, example: int) -> str:
        """The text of an example, as its tokens spell it."""
        encoded = self.examples(split).encoded
        tokens = encoded.tokens[encoded.offsets[example] : encoded.offsets[example + 1]]
        return str(tokenizer_of(self.needed_tokenizer())[0].decode(tokens.tolist()))

    def sources(self, split: str) -> tuple[str, ...]:
        """What a split is read from."""
        if split == "train" and self.mixture:
            return tuple(source for source, _ in self.mixture)
        return (self.source(split),)

    def signature(self, split: str) -> Signature:
        """Equal while the files of a split, and those it must not overlap, are unchanged."""
        self.check()
        sources = [*self.sources(split), *self.held_out(split)]
        return tuple(part for source in sources for part in documents.signature(source))

    def held_out(self, split: str) -> tuple[str, ...]:
        """The sources whose text a split must not hold."""
        if split != "train" or self.overlap is None:
            return ()
        return tuple(source for source in (self.dev, self.test) if source)

    def reader(self, split: str) -> Reader:
        """How the sources of a split are read."""
        return Reader(
            text=self.text,
            document=self.document,
            columns=self.columns,
            quoting=self.quoting,
            max_bad_rows=self.max_bad_rows,
            limit=self.limit if split == "train" else None,
        )

    @property
    def arrangement(self) -> Arrangement:
        """How examples become arrays: packed means block by block."""
        layout = "blocks" if self.layout == "packed" else self.layout
        length = self.row_length or self.max_length
        return Arrangement(layout=layout, row_length=length, shapes=self.shapes, words=self.words)

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        self.check_positive("max_length", "overlap")
        if self.mixture and self.train:
            raise ConfigError("data.mixture and data.train are both set; one says what train is")
        for source, weight in self.mixture:
            if not 0 < weight < float("inf"):
                raise ConfigError(f"data.mixture: {source} has weight {weight}, expected over 0")
        if self.overlap is not None and not (self.dev or self.test):
            raise ConfigError("data.overlap is set, but there is neither data.dev nor data.test")

    def key(self, split: str, tokenizer: str) -> str:
        """Where the tokens of a split are kept: 32 hex digits over all that decides them."""
        settings: dict[str, Any] = {
            "version": VERSION,
            "tokenizer": tokenizer,
            "length": self.max_length,
            "segments": self.segments,
            "end": self.end,
            "reader": self.reader(split),
        }
        if split == "train":
            settings |= {"filters": self.filters, "duplicates": self.duplicates}
            settings |= {"overlap": (self.overlap, [*map(documents.digest, self.held_out(split))])}
        settings["sources"] = [*map(documents.digest, self.sources(split))]
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=8)
def examples_of(corpus: Corpus, split: str, found: Signature) -> Examples:
    """The blocks of a split, from the cache or made for it."""
    tokenizer, vocabulary = tokenizer_of(corpus.needed_tokenizer())
    frame = Frame.of(tokenizer, corpus.end)
    if corpus.segments == "blocks" and not frame.size:
        raise ConfigError("data.segments='blocks' needs data.end, a token between documents")
    key, folder = corpus.key(split, vocabulary.fingerprint), cache.directory(corpus.cache)

    def make() -> tuple[cache.Arrays, dict[str, Any]]:
        with closing(
            Stream(tokenizer, frame, corpus.max_length, corpus.segments, folder)
        ) as stream:
            left_out = fill(corpus, split, stream)
            facts = {"lost": 0, "bad": left_out.pop("bad", 0), "sizes": stream.sizes}
            return stream.finish(), facts | {"left_out": dict(left_out)}

    arrays, facts = cache.load_or_make(folder / key, make)
    units = arrays["units"]
    slots = {"weights": np.ones(len(units), np.float32), "bytes": arrays["bytes"]}
    mixture = None
    if split == "train" and corpus.mixture:
        weights = tuple(weight for _, weight in corpus.mixture)
        mixture = Mixture(tuple(facts["sizes"]), weights)
        slots["sources"] = np.searchsorted(np.cumsum(mixture.sizes), units, side="right").astype(
            np.int32
        )
    return Examples(
        encoded=Encoded.of(arrays, facts, key),
        slots=slots,
        units=units,
        mixture=mixture,
        dropped=facts["bad"],
        left_out=facts["left_out"],
    )


def fill(corpus: Corpus, split: str, stream: Stream) -> Counter[str]:
    """Puts the documents of a split in; returns how many were left out, by reason.

    Raises DataError for a source of which none remains.
    """
    keep, left_out = wanted(corpus) if split == "train" else (None, Counter[str]())
    number = 0
    for source in corpus.sources(split):
        for chunk in corpus.reader(split).chunks(source):
            left_out["bad"] += chunk.bad
            count = len(chunk.texts)
            if keep is None:
                stream.add(chunk.texts)
            else:
                stream.add([t for t, k in zip(chunk.texts, keep[number : number + count]) if k])
            number += count
        if not stream.close_source():
            raise DataError(f"{source}:1: holds no documents to learn from{told(left_out)}")
    if stream.blank:
        left_out["empty"] = stream.blank
    return left_out


def told(left_out: Counter[str]) -> str:
    """Why documents were left out, for a complaint."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return f"; left out: {reasons}" if reasons else ""


def wanted(corpus: Corpus) -> tuple[np.ndarray | None, Counter[str]]:
    """Which documents of train to use, bool [documents], None for all; the others by reason."""
    left_out = Counter[str]()
    finder = corpus.duplicates
    if not corpus.filters and finder is None and corpus.overlap is None:
        return None, left_out
    held_out = forbidden(corpus)
    flags, hashes, counts = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for texts in texts_of(corpus.reader("train"), corpus.sources("train")):
        reasons = [judge(corpus.filters, text) for text in texts]
        if corpus.overlap is not None:
            overlaps = overlapping(texts, held_out, corpus.overlap)
            said = f"share {corpus.overlap} words with dev or test"
            reasons = [said if o and not r else r for r, o in zip(reasons, overlaps)]
        left_out.update(reason for reason in reasons if reason is not None)
        flags.append(np.array([reason is None for reason in reasons], bool))
        if finder is not None:
            found = finder.sketch([t for t, reason in zip(texts, reasons) if reason is None])
            hashes.append(found[0])
            counts.append(found[1])
    keep = np.concatenate(flags)
    if finder is not None:
        firsts = finder.firsts(np.concatenate(hashes), np.concatenate(counts))
        keep[np.flatnonzero(keep)[~firsts]] = False
        left_out[finder.reason] = int((~firsts).sum())
    return keep, left_out


def judge(filters: tuple[Filter, ...], text: str) -> str | None:
    """The first reason that a filter gives."""
    return next((reason for f in filters if (reason := f.reason(text)) is not None), None)


def forbidden(corpus: Corpus) -> np.ndarray:
    """Hashes of the runs of words of dev and test, uint64, ascending."""
    if corpus.overlap is None:
        return np.zeros(0, np.uint64)
    found = texts_of(corpus.reader("dev"), corpus.held_out("train"))
    return np.unique(np.concatenate([shingles(texts, corpus.overlap)[0] for texts in found]))


def texts_of(reader: Reader, sources: Sequence[str]) -> Iterator[list[str]]:
    """The documents of sources, a chunk at a time."""
    for source in sources:
        for chunk in reader.chunks(source):
            yield chunk.texts

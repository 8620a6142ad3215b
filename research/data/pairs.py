"""Texts that are compared: anchors with positives and hard negatives, and pairs with a score."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.data import cache, labels
from research.data.batches import Examples
from research.data.dataset import BLANK, SPLITS, Dataset, Signature
from research.data.formats import Quoting, Row
from research.data.rows import Rows, keep_good
from research.data.sources import read_rows
from research.data.tokenize import Encoded, encode
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError

ANCHOR, POSITIVE, NEGATIVE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Pairs(Dataset):
    """Rows of texts, each text an example, the texts of a row a unit (see `Examples`).

    `train`, `dev` and `test` are sources as for `read_rows`. A row has an `anchor`, a `positive`
    (None: each row is one text) and hard `negatives`, by the names of their columns; `columns`
    names those of files without a header. Of these rows only those with the value `where[1]` in the
    column `where[0]` are used. The splits in `scored` hold `first`, `second` and a `score` in
    `score_range` instead, which is mapped onto [0, 1]; their columns are `scored_columns` where
    there is no header, and rows without a score are refused or left out (`unscored`). The other
    fields are those of `Dataset`; `limit` is in rows.

    Slots: `roles` (0 anchor, 1 positive, 2 negative), `pairs` (the row), `texts` (equal for equal
    texts), `weights`, and of scored splits `scores`; single texts have neither roles nor pairs.
    """

    anchor: str = "anchor"
    positive: str | None = "positive"
    negatives: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    scored: tuple[str, ...] = ("dev", "test")
    first: str = "sentence1"
    second: str = "sentence2"
    score: str = "score"
    score_range: tuple[float, float] = (0.0, 5.0)
    scored_columns: tuple[str, ...] = ()
    unscored: Literal["refuse", "leave-out"] = "refuse"
    quoting: Quoting = "auto"

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """New rows in their order: a text, or a dict with one or both columns of a pair.

        Raises DataError naming the row that has no text; `where` is the file and the line of the
        first. Nothing is kept in the cache.
        """
        given = [self.texts_of(row) for row in rows]
        for number, named in enumerate(given, where[1]):
            for name, text in named.items():
                if reason := fault_of(text, name):
                    raise DataError(f"{where[0]}:{number}: {reason}")
        texts = [text for named in given for text in named.values()]
        units = np.repeat(np.arange(len(given)), [len(named) for named in given])
        roles = np.array([role for named in given for role in range(len(named))])
        encoded = self.tokens(texts, keep=False)
        if len(encoded.blank):
            number = where[1] + int(units[encoded.blank[0]])
            raise DataError(f"{where[0]}:{number}: {BLANK}")
        return Examples(
            encoded=dataclasses.replace(encoded, row_of=units),
            slots=slots_of(texts, units, roles, None),
            units=units,
            source=[list(named.values()) for named in given],
        )

    def texts_of(self, row: Any) -> dict[str, Any]:
        """One or two texts of a new row by name: of a scored pair, or else anchor and positive."""
        if isinstance(row, str):
            return {"text": row}
        one, two = self.anchor, self.positive
        if self.first in row:
            one, two = self.first, self.second
        return {one: row.get(one)} | ({two: row[two]} if two is not None and two in row else {})

    def text_of(self, split: str, example: int) -> Row:
        """All texts of the row that an example (the `ids` of a batch) is from, for reports."""
        examples = examples_of(self, split, self.signature(split))
        return dict(zip(self.names(split), examples.source[examples.encoded.row_of[example]]))

    def quote(self, split: str, example: int) -> str:
        """All texts of an example's row."""
        return " | ".join(self.text_of(split, example).values())

    def names(self, split: str) -> tuple[str, ...]:
        """The columns of a split that hold texts, in the order of their roles."""
        if split in self.scored:
            return (self.first, self.second)
        return (self.anchor, *(() if self.positive is None else (self.positive,)), *self.negatives)

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        if self.negatives and self.positive is None:
            raise ConfigError("data.negatives are given, but with data.positive None there is none")
        if len(self.where) not in (0, 2):
            raise ConfigError(f"data.where is {self.where}, expected a column and a value")
        if not self.score_range[0] < self.score_range[1]:
            raise ConfigError(f"data.score_range is {self.score_range}, expected lowest, highest")
        for split in self.scored:
            if split not in SPLITS:
                raise ConfigError(f"data.scored: {split!r} is none of {', '.join(SPLITS)}")

    def tokens(self, texts: Sequence[str], *, keep: bool) -> Encoded:
        """The tokens of single texts."""
        return encode(
            texts,
            None,
            tokenizer_of(self.needed_tokenizer())[0],
            max_length=self.max_length,
            keep_in=cache.directory(self.cache) if keep else None,
        )


def fault_of(text: Any, name: str) -> str | None:
    """What is wrong with the text in column `name`."""
    if text is None:
        return f"no column {name!r}"
    if not isinstance(text, str):
        return f"{name!r} is not a text"
    return None if text.strip() else f"{name!r} is empty"


@functools.lru_cache(maxsize=8)
def usable_rows(pairs: Pairs, split: str, found: Signature) -> tuple[Rows, np.ndarray | None]:
    """The rows of a split that have all their texts, and of scored ones the scores in [0, 1]."""
    pairs.check()
    scored = split in pairs.scored
    names = pairs.names(split)
    extra = (pairs.score,) if scored else pairs.where[:1]
    rows = read_rows(
        pairs.source(split),
        columns=pairs.scored_columns if scored else pairs.columns,
        need=tuple(dict.fromkeys((*names, *extra))),
        quoting=pairs.quoting,
        max_bad_rows=pairs.max_bad_rows,
    )
    rows = wanted(pairs, rows, scored=scored)
    if split == "train" and pairs.limit is not None:
        rows = rows.take(range(min(pairs.limit, len(rows))))
    scores: np.ndarray | None = None
    faults: list[str | None] = [None] * len(rows)
    if scored:
        low, high = pairs.score_range
        values, faults = labels.read([row[pairs.score] for row in rows], None, pairs.score_range)
        faults = [reason and reason.replace("label", repr(pairs.score), 1) for reason in faults]
        scores = (values - np.float32(low)) / np.float32(high - low)
    faults = [
        next((reason for name in names if (reason := fault_of(row[name], name))), fault)
        for row, fault in zip(rows, faults)
    ]
    if scores is not None:
        scores = scores[[fault is None for fault in faults]]
    return keep_good(rows, faults), scores


def wanted(pairs: Pairs, rows: Rows, *, scored: bool) -> Rows:
    """The rows that are to be used, good or bad."""
    if scored and pairs.unscored == "leave-out":
        chosen = [i for i, row in enumerate(rows) if row[pairs.score].strip()]
        reason = f"no row has a {pairs.score!r}"
    elif not scored and pairs.where:
        column, value = pairs.where
        chosen = [i for i, row in enumerate(rows) if row[column] == value]
        reason = f"no row has {value!r} as its {column!r}"
    else:
        return rows
    if not chosen:
        raise DataError(f"{rows.source}:1: {reason}")
    return rows.take(chosen)


@functools.lru_cache(maxsize=8)
def examples_of(pairs: Pairs, split: str, found: Signature) -> Examples:
    """The encoded texts of a split with what they are to each other."""
    rows, scores = usable_rows(pairs, split, found)
    names = pairs.names(split)
    texts = [row[name] for row in rows for name in names]
    encoded = pairs.tokens(texts, keep=True)
    if len(encoded.blank):
        blank = set((encoded.blank // len(names)).tolist())
        good = [i for i in range(len(rows)) if i not in blank]
        rows = keep_good(rows, [BLANK if i in blank else None for i in range(len(rows))])
        scores = None if scores is None else scores[good]
        texts = [row[name] for row in rows for name in names]
        encoded = pairs.tokens(texts, keep=True)
    units, roles = np.divmod(np.arange(len(texts)), len(names))
    slots = slots_of(texts, units, np.minimum(roles, NEGATIVE), scores)
    if len(names) == 1:
        del slots["roles"], slots["pairs"]
    return Examples(
        encoded=dataclasses.replace(encoded, row_of=units),
        slots=slots,
        units=units if len(names) > 1 else None,
        source=[[row[name] for name in names] for row in rows],
        dropped=len(rows.dropped),
    )


def slots_of(
    texts: Sequence[str], units: np.ndarray, roles: np.ndarray, scores: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What a batch says of each text: see `Pairs`."""
    numbers: dict[str, int] = {}
    slots = {
        "roles": roles.astype(np.int32),
        "pairs": units.astype(np.int32),
        "texts": np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int32),
        "weights": np.ones(len(texts), np.float32),
    }
    return slots if scores is None else slots | {"scores": scores[units]}

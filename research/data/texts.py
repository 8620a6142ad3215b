"""Labelled or plain texts, single or in pairs, as training streams and evaluation passes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.data import cache, labels
from research.data.batches import Arrangement, Examples
from research.data.byte_counts import byte_counts
from research.data.dataset import BLANK, Dataset, Signature
from research.data.formats import Quoting, Row
from research.data.rows import Rows, keep_good
from research.data.sources import read_rows
from research.data.tokenize import Encoded, encode
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Texts(Dataset):
    """Texts from rows (see `read_rows` for what `train`, `dev` and `test` may be).

    `text`, `pair` and `label` name columns. `labels` are the classes in order; left out, those of
    `train`, sorted, numbers by value; with `multilabel` a cell holds any number of them, divided by
    `separator` or as a JSON list; with `regression` the label is a number, within `limits` if set.
    `long` says whether a text of more than `max_length` tokens is truncated or split into several
    examples. Of `train` only `limit` rows are used, or `shots` of each label, drawn by `shot_seed`;
    `resample` draws its labels more evenly (see `labels.draws`), an epoch staying as long. `words`
    adds word numbers to the batches; `weight` names a column of what each row of train weighs in
    the loss, a number from 0 up; `group` names a column of train: its values, ordered as labels
    are, become the fact and the slot `groups`; `bytes` adds the slot `bytes` to dev and test, of
    single texts, for bits a byte. The other fields are those of `Dataset`.
    """

    text: str = "text"
    pair: str | None = None
    label: str | None = "label"
    labels: tuple[str, ...] = ()
    regression: bool = False
    limits: tuple[float, float] | None = None
    multilabel: bool = False
    separator: str = ","
    weight: str | None = None
    group: str | None = None
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    long: Literal["truncate", "split"] = "truncate"
    shots: int | None = None
    shot_seed: int = 0
    resample: float = 0.0
    words: bool = False
    bytes: bool = False

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """New rows in their order, without labels: example i is row i, and its weight is 0.

        A row is a text or a dict with the text columns. Raises DataError naming the row that has no
        text; `where` is the file and the line of the first. Nothing is kept in the cache.
        """
        given = Rows("rows")
        for number, row in enumerate(rows, where[1]):
            given.add(where[0], number, {self.text: row} if isinstance(row, str) else row)
        for i, row in enumerate(given):
            if reason := self.fault(row):
                raise DataError(f"{given.where(i)}: {reason}")
        encoded = self.tokens(given, long="truncate", keep=False)
        if len(encoded.blank):
            raise DataError(f"{given.where(int(encoded.blank[0]))}: {BLANK}")
        kind = np.float32 if self.regression else np.int32
        nothing = np.zeros(len(encoded.row_of))
        slots = {"labels": nothing.astype(kind), "weights": nothing.astype(np.float32)}
        return Examples(encoded=encoded, slots=slots)

    def facts(self) -> dict[str, object]:
        """What a task may want to know.

        `labels`; of the rows of train that are used `label_counts`, how many have each label, with
        `multilabel` `train_rows`, and for regression `label_mean`; and of the tokenizer
        `vocab_size`, `pad_id`, `cls_id`, `sep_id`, `mask_id`, `bos_id`, `eos_id`, `special_ids`,
        `continue_ids` (tokens that go on with a word) and `tokenizer_fingerprint`.
        """
        names = self.label_names()
        facts: dict[str, object] = {"labels": names, **self.vocabulary.facts()}
        if self.group is not None:
            facts["groups"] = groups_of(self, "train", self.signature("train"))[0]
        if self.label is None:
            return facts
        return facts | labels.facts(labelled_rows(self, "train", self.signature("train"))[1], names)

    def text_of(self, split: str, example: int) -> Row:
        """The row that an example (the `ids` of a batch) is from, for reports."""
        examples = examples_of(self, split, self.signature(split))
        return labelled_rows(self, split, self.signature(split))[0][
            int(examples.encoded.row_of[example])
        ]

    def quote(self, split: str, example: int) -> str:
        """The text of an example, or both of a pair."""
        row = self.text_of(split, example)
        return " | ".join(row[name] for name in (self.text, self.pair) if name is not None)

    def label_names(self) -> tuple[str, ...]:
        """The classes; none without a label and for regression."""
        if self.label is None or self.regression:
            return ()
        if self.labels:
            return labels.check(self.labels)
        return inferred_labels(self, self.signature("train"))

    @property
    def one_label(self) -> bool:
        """Whether every row has one class."""
        return self.label is not None and not self.regression and not self.multilabel

    @property
    def arrangement(self) -> Arrangement:
        """How examples become arrays."""
        return Arrangement(
            layout=self.layout, row_length=self.row_length, shapes=self.shapes, words=self.words
        )

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        self.check_positive("shots")
        if (self.shots is not None or self.resample) and not self.one_label:
            name = "shots" if self.shots is not None else "resample"
            raise ConfigError(
                f"data.{name} needs classes: set data.label, and not data.regression or multilabel"
            )
        if self.regression and self.labels:
            raise ConfigError("data.labels are given, but with data.regression there are none")
        if self.bytes and self.pair is not None:
            raise ConfigError("data.bytes is for single texts, but data.pair is set")
        if self.regression and self.multilabel:
            raise ConfigError("data.regression and data.multilabel cannot both be set")

    def fault(self, row: Row) -> str | None:
        """What is wrong with the texts of a row."""
        for column in (self.text, self.pair):
            if column is None:
                continue
            value: Any = row.get(column, "")
            if not isinstance(value, str):
                return f"{column!r} is not a text"
            if not value.strip():
                return f"{column!r} is empty" if column in row else f"no column {column!r}"
        return None

    def tokens(self, rows: Rows, *, long: Literal["truncate", "split"], keep: bool) -> Encoded:
        """The tokens of rows."""
        return encode(
            rows.column(self.text),
            None if self.pair is None else rows.column(self.pair),
            tokenizer_of(self.needed_tokenizer())[0],
            max_length=self.max_length,
            long=long,
            keep_in=cache.directory(self.cache) if keep else None,
        )


@functools.lru_cache(maxsize=8)
def usable_rows(texts: Texts, split: str, found: Signature) -> Rows:
    """The rows of a split that have their texts."""
    beside = (texts.weight, texts.group) if split == "train" else ()
    names = (texts.text, texts.pair, texts.label, *beside)
    need = tuple(name for name in names if name is not None)
    rows = read_rows(
        texts.source(split),
        columns=texts.columns,
        need=need,
        lists=(texts.label,) if texts.label is not None and texts.multilabel else (),
        quoting=texts.quoting,
        max_bad_rows=texts.max_bad_rows,
        keep_in=cache.directory(texts.cache),
    )
    return keep_good(rows, [texts.fault(row) for row in rows])


@functools.lru_cache(maxsize=8)
def labelled_rows(texts: Texts, split: str, found: Signature) -> tuple[Rows, np.ndarray]:
    """The rows that are used of a split, and the label of each."""
    rows = usable_rows(texts, split, found)
    if texts.label is None:
        numbers = np.zeros(len(rows), np.int32)
    else:
        # As few texts as there are different ones.
        known: dict[str, str] = {}
        cells = [known.setdefault(cell, cell) for cell in rows.column(texts.label)]
        names = None if texts.regression else texts.label_names()
        if names is not None and texts.multilabel:
            numbers, faults = labels.read_many(cells, names, texts.separator)
        else:
            numbers, faults = labels.read(cells, names, texts.limits)
        rows, numbers = keep_good(rows, faults), numbers[[fault is None for fault in faults]]
        if split == "train" and texts.labels:
            labels.all_occur(numbers, texts.labels, texts.train)
    if split == "train" and texts.limit is not None:
        rows, numbers = rows.take(range(min(texts.limit, len(rows)))), numbers[: texts.limit]
    if split == "train" and texts.shots is not None:
        chosen = labels.few(numbers, texts.label_names(), texts.shots, texts.shot_seed)
        rows, numbers = rows.take(chosen), numbers[chosen]
    return rows, numbers


@functools.lru_cache(maxsize=8)
def examples_of(texts: Texts, split: str, found: Signature) -> Examples:
    """The encoded rows of a split with their labels."""
    texts.check()
    rows, numbers = labelled_rows(texts, split, found)
    encoded = texts.tokens(rows, long=texts.long, keep=True)
    counted = rows.take(())
    for row in encoded.blank.tolist():
        counted.drop(rows.where(row), BLANK)
    resampled = texts.resample and split == "train"
    slots = {
        "labels": numbers[encoded.row_of],
        "weights": np.ones(len(encoded.row_of), np.float32),
    }
    if texts.weight is not None and split == "train":
        slots["weights"] = labels.weights(rows, texts.weight)[encoded.row_of]
    if texts.group is not None and split == "train":
        slots["groups"] = groups_of(texts, split, found)[1][encoded.row_of]
    if texts.bytes and split != "train":
        tokenizer = tokenizer_of(texts.needed_tokenizer())[0]
        slots["bytes"] = byte_counts(rows.column(texts.text), encoded, tokenizer)
    return Examples(
        encoded=encoded,
        slots=slots,
        draws=labels.draws(numbers[encoded.row_of], texts.resample) if resampled else None,
        dropped=len(counted.dropped),
    )


def groups_of(texts: Texts, split: str, found: Signature) -> tuple[tuple[str, ...], np.ndarray]:
    """The groups of the rows that are used, and the number of each row's, int32. Raises DataError
    for a row without one."""
    assert texts.group is not None
    rows = labelled_rows(texts, split, found)[0]
    cells = [row[texts.group] for row in rows]
    for i, cell in enumerate(cells):
        if not cell.strip():
            raise DataError(f"{rows.where(i)}: {texts.group!r} is empty")
    names = labels.infer(cells)
    return names, labels.read(cells, names)[0]


@functools.lru_cache(maxsize=8)
def inferred_labels(texts: Texts, found: Signature) -> tuple[str, ...]:
    """The labels of all of train."""
    assert texts.label is not None
    cells = usable_rows(texts, "train", found).column(texts.label)
    return labels.infer_many(cells, texts.separator) if texts.multilabel else labels.infer(cells)

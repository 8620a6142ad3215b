"""Questions with choices of which one is right, each choice an example beside its question."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data import cache
from research.data.batches import Arrangement, Batches, Examples
from research.data.formats import Quoting
from research.data.pack import Layout
from research.data.sources import Rows, keep_good, read_rows, signature
from research.data.texts import BLANK, Signature
from research.data.tokenize import Encoded, encode
from research.data.vocabulary import Vocabulary, tokenizer_of
from research.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Multiple choice from rows (see `read_rows` for what `train`, `dev` and `test` may be).

    `question` and `answer` name columns, and `choices` those of the choices, of which a row may
    leave some empty; the answer is the name of one of the others. A question's choices are a unit:
    `batch_size` counts questions. All other fields are those of `Texts`.
    """

    train: str
    dev: str = ""
    test: str = ""
    question: str = "question"
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    answer: str = "answer"
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    tokenizer: str | None = None
    max_length: int = 128
    limit: int | None = None
    layout: Layout = "packed"
    row_length: int | None = None
    shapes: int = 2
    max_bad_rows: int = 0
    cache: str = ""

    def open(
        self,
        split: str,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        multiple: int = 1,
        host: tuple[int, int] = (0, 1),
    ) -> Batches:
        """A shuffled stream of `steps` steps, or without them one pass in the order of the file.

        Raises DataError "file:line: reason", and ConfigError for settings that do not fit.
        """
        return Batches(
            examples_of(self, split, self.signature(split)),
            batch_size,
            steps=steps,
            seed=seed,
            multiple=multiple,
            host=host,
            arrangement=self.arrangement,
        )

    def encode_rows(
        self,
        rows: Sequence[Any],
        batch_size: int = 128,
        *,
        multiple: int = 1,
        where: tuple[str, int] = ("rows", 1),
    ) -> Batches:
        """New questions in their order, without answers: unit i is row i.

        A row is a dict with the question and its choices. Raises DataError naming the row that is
        none; `where` is the file and the line of the first.
        """
        given = Rows("rows")
        for number, row in enumerate(rows, where[1]):
            if not isinstance(row, dict):
                raise DataError(f"{where[0]}:{number}: expected a JSON object with {self.wanted}")
            given.add(where[0], number, row)
        for i, row in enumerate(given):
            if reason := self.fault(row, answered=False):
                raise DataError(f"{given.where(i)}: {reason}")
        examples = encode_choices(self, given, keep=False, answered=False)
        return Batches(examples, batch_size, multiple=multiple, arrangement=self.arrangement)

    def facts(self) -> dict[str, object]:
        """What a task may want to know of the tokenizer: see `Vocabulary.facts`."""
        return self.vocabulary.facts()

    def text_of(self, split: str, example: int) -> Mapping[str, str]:
        """The row that an example (the `ids` of a batch) is from, for reports."""
        examples = examples_of(self, split, self.signature(split))
        _, row = examples.source[int(examples.encoded.row_of[example])]
        return dict(row)

    def quote(self, split: str, example: int) -> str:
        """The question of an example and all its choices."""
        row = self.text_of(split, example)
        told = [f"{name}: {row[name]}" for name in self.choices if row[name].strip()]
        return " | ".join([row[self.question], *told])

    @property
    def wanted(self) -> str:
        """The columns of a question."""
        return ", ".join((self.question, *self.choices))

    @property
    def vocabulary(self) -> Vocabulary:
        """Facts of the tokenizer."""
        return tokenizer_of(self.needed_tokenizer())[1]

    @property
    def arrangement(self) -> Arrangement:
        """How examples become arrays."""
        return Arrangement(layout=self.layout, row_length=self.row_length, shapes=self.shapes)

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        for name in ("limit", "row_length", "shapes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} is {value}, but must be positive")
        if len(set(self.choices)) < max(2, len(self.choices)):
            raise ConfigError("data.choices must name two columns or more, each once")

    def needed_tokenizer(self) -> str:
        """The tokenizer. Raises ConfigError where none is set."""
        if self.tokenizer is None:
            raise ConfigError("data.tokenizer is not set; expected a directory, a file or an id")
        return self.tokenizer

    def source(self, split: str) -> str:
        """What a split is read from. Raises ConfigError for one that is not set."""
        if split not in ("train", "dev", "test"):
            raise ConfigError(f"data: there is no split {split!r}; there are train, dev and test")
        source: str = getattr(self, split)
        if not source:
            raise ConfigError(f"data.{split} is not set; expected a path")
        return source

    def signature(self, split: str) -> Signature:
        """Equal while the files of a split are unchanged."""
        return signature(self.source(split))

    def offered(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The choices that a row has."""
        return tuple(name for name in self.choices if row.get(name, "").strip())

    def fault(self, row: Mapping[str, Any], *, answered: bool) -> str | None:
        """What is wrong with a row."""
        for column in (self.question, *self.choices):
            if not isinstance(row.get(column, ""), str):
                return f"{column!r} is not a text"
        if not row.get(self.question, "").strip():
            known = self.question in row
            return f"{self.question!r} is empty" if known else f"no column {self.question!r}"
        offered = self.offered(row)
        if len(offered) < 2:
            return f"has {len(offered)} choices, expected two or more"
        if answered and row[self.answer] not in offered:
            return f"the answer {row[self.answer]!r} is not among its choices {', '.join(offered)}"
        return None


@functools.lru_cache(maxsize=8)
def answered_rows(choices: Choices, split: str, found: Signature) -> Rows:
    """The questions that are used of a split."""
    choices.check()
    rows = read_rows(
        choices.source(split),
        columns=choices.columns,
        need=(choices.question, *choices.choices, choices.answer),
        quoting=choices.quoting,
        max_bad_rows=choices.max_bad_rows,
    )
    rows = keep_good(rows, [choices.fault(row, answered=True) for row in rows])
    if split == "train" and choices.limit is not None:
        rows = rows.take(range(min(choices.limit, len(rows))))
    return rows


@functools.lru_cache(maxsize=8)
def examples_of(choices: Choices, split: str, found: Signature) -> Examples:
    """The encoded questions of a split with their answers."""
    rows = answered_rows(choices, split, found)
    return encode_choices(choices, rows, keep=True, answered=True)


def encode_choices(choices: Choices, rows: Rows, *, keep: bool, answered: bool) -> Examples:
    """An example for every choice of every question, those of a question one after another.

    Slots: `labels` 1 for the right choice, `questions` the number of the question. `source`
    holds for each question the names of its choices and its row. A text without tokens makes its
    row a bad one.
    """
    offered = [choices.offered(row) for row in rows]
    question = np.repeat(np.arange(len(rows)), [len(names) for names in offered])
    encoded: Encoded = encode(
        [row[choices.question] for row, names in zip(rows, offered) for _ in names],
        [row[name] for row, names in zip(rows, offered) for name in names],
        tokenizer_of(choices.needed_tokenizer())[0],
        max_length=choices.max_length,
        keep_in=cache.directory(choices.cache) if keep else None,
    )
    if len(encoded.blank):
        blank = set(question[encoded.blank].tolist())
        good = keep_good(rows, [BLANK if i in blank else None for i in range(len(rows))])
        return encode_choices(choices, good, keep=keep, answered=answered)
    right = [name == row.get(choices.answer) for row, names in zip(rows, offered) for name in names]
    return Examples(
        encoded=dataclasses.replace(encoded, row_of=question),
        slots={
            "labels": np.asarray(right, np.int32) * answered,
            "weights": np.full(len(question), answered, np.float32),
            "questions": question.astype(np.int32),
        },
        units=question,
        source=list(zip(offered, rows)),
        dropped=len(rows.dropped),
    )

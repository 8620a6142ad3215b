"""Questions with choices of which one is right, each choice an example beside its question."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data import cache
from research.data.batches import Examples
from research.data.dataset import BLANK, Dataset, Signature
from research.data.formats import Quoting
from research.data.rows import Rows, keep_good
from research.data.sources import read_rows
from research.data.tokenize import Encoded, encode
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Choices(Dataset):
    """Multiple choice from rows (see `read_rows` for what `train`, `dev` and `test` may be).

    `question` and `answer` name columns, and `choices` those of the choices, of which a row may
    leave some empty; the answer is the name of one of the others. A question's choices are a unit:
    `batch_size` counts questions. All other fields are those of `Dataset`.
    """

    question: str = "question"
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    answer: str = "answer"
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
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
        return encode_choices(self, given, keep=False, answered=False)

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

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        if len(set(self.choices)) < max(2, len(self.choices)):
            raise ConfigError("data.choices must name two columns or more, each once")

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

"""Questions about contexts, answered by spans of them or not at all: SQuAD 1.1 and 2.0."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data import cache, squad
from research.data.batches import Examples
from research.data.dataset import BLANK, Dataset, Signature
from research.data.formats import Row, half_pair
from research.data.rows import Rows, keep_good
from research.data.sources import read_rows
from research.data.vocabulary import tokenizer_of
from research.data.windows import Windows, cut
from research.errors import ConfigError, DataError

UNMARKED = "the answer has no tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The `source` of the examples: rows, the windows they became, and the texts of the answers of
    each row, none where it cannot be answered."""

    rows: Rows
    windows: Windows
    answers: Sequence[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Questions(Dataset):
    """Questions from files in the format of SQuAD (see `read_rows` for what a source may be).

    Where `dev` is not set it is `holdout` of the questions of `train`, by whole articles: they are
    drawn by `holdout_seed` and their titles, and training sees none of them. An example is a window
    of at most `max_length` tokens, a question of at most `max_question` and a stretch of its
    context, `stride` tokens of the context after the one before it (Devlin et al., 2019). Of
    `train` only the first `limit` questions are used. The other fields are those of `Dataset`.

    Slots: `start` and `end`, the places of the first of the answers in the window, 0 (its first
    token) where it is not there, and `weights`; cells: `context`, 1 for a token of the context.
    """

    holdout: float = 0.0
    holdout_seed: int = 0
    max_length: int = 384
    max_question: int = 64
    stride: int = 128

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`."""
        return examples_of(self, split, self.signature(split))

    def new_examples(self, rows: Sequence[Any], where: tuple[str, int]) -> Examples:
        """The windows of new rows, in their order: dicts with the texts `question` and `context`.

        Raises DataError naming the row that lacks one; `where` is the file and the line of the
        first. Nothing is kept in the cache.
        """
        self.check()
        given = Rows("rows")
        for number, row in enumerate(rows, where[1]):
            given.add(where[0], number, row)
            if reason := missing(row):
                raise DataError(f"{where[0]}:{number}: {reason}")
        windows = self.cut(given, [None] * len(given), keep=False)
        if len(windows.encoded.blank):
            raise DataError(f"{given.where(int(windows.encoded.blank[0]))}: {BLANK}")
        return as_examples(Asked(rows=given, windows=windows, answers=[()] * len(given)), 0)

    def facts(self) -> dict[str, object]:
        """What a task may want to know: `unanswerable`, whether some question of train has no
        answer, and what `Vocabulary.facts` tells."""
        rows = split_rows(self, "train", self.signature("train"))
        unanswerable = not all(squad.answers_of(row) for row in rows)
        return {"unanswerable": unanswerable, **self.vocabulary.facts()}

    def text_of(self, split: str, example: int) -> Row:
        """The row that an example (the `ids` of a batch) is from, for reports."""
        examples = self.examples(split)
        row: Row = examples.source.rows[int(examples.encoded.row_of[example])]
        return row

    def quote(self, split: str, example: int) -> str:
        """The question of an example, and its context."""
        row = self.text_of(split, example)
        return f"{row['question']} | {row['context']}"

    def check(self) -> None:
        """Raises ConfigError for values out of range."""
        super().check()
        self.check_positive("max_length", "max_question", "stride")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"data.holdout is {self.holdout}, but must be in [0, 1)")

    def source(self, split: str) -> str:
        """See `Dataset.source`; dev may be articles of train's."""
        return super().source("train" if split == "dev" and self.splits_train else split)

    @property
    def splits_train(self) -> bool:
        """Whether dev is articles of train's."""
        return not self.dev and self.holdout > 0

    def cut(self, rows: Rows, answers: Sequence[tuple[int, int] | None], *, keep: bool) -> Windows:
        """The windows of rows."""
        return cut(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            answers,
            tokenizer_of(self.needed_tokenizer())[0],
            max_length=self.max_length,
            stride=self.stride,
            max_question=self.max_question,
            keep_in=cache.directory(self.cache) if keep else None,
        )


def missing(row: Any) -> str | None:
    """What a new row lacks."""
    if not isinstance(row, dict):
        return "expected a JSON row with 'question' and 'context', found a text"
    for name in ("question", "context"):
        value = row.get(name, "")
        if not isinstance(value, str):
            return f"{name!r} is not a text"
        if not value.strip():
            return f"{name!r} is empty" if name in row else f"no {name!r}"
        if half_pair(value):
            return f"{name!r} holds half a surrogate pair"
    return None


@functools.lru_cache(maxsize=4)
def usable_rows(source: str, max_bad_rows: int, found: Signature) -> Rows:
    """The questions of a source whose answers are where they say."""
    rows = read_rows(source, need=squad.COLUMNS, max_bad_rows=max_bad_rows)
    faults = [squad.fault(row) for row in rows]
    seen: set[str] = set()
    for i, row in enumerate(rows):
        if row["id"] in seen:
            faults[i] = faults[i] or f"the question id {row['id']!r} occurs twice"
        seen.add(row["id"])
    return keep_good(rows, faults)


@functools.lru_cache(maxsize=8)
def split_rows(questions: Questions, split: str, found: Signature) -> Rows:
    """The questions of a split, before any is found to have no tokens."""
    questions.check()
    rows = usable_rows(questions.source(split), questions.max_bad_rows, found)
    if questions.splits_train and split != "test":
        titles = [row["title"] for row in rows]
        held = held_out(titles, questions.holdout, questions.holdout_seed)
        if not held or len(held) == len(set(titles)):
            raise DataError(
                f"{rows.source}:1: all questions are of one article, so that data.holdout has none "
                "to hold out; set data.dev"
            )
        rows = rows.take([i for i, t in enumerate(titles) if (t in held) == (split == "dev")])
    if split == "train" and questions.limit is not None:
        rows = rows.take(range(min(questions.limit, len(rows))))
    return rows


def held_out(titles: Sequence[str], share: float, seed: int) -> set[str]:
    """Articles that have at least `share` of the questions, fewer only to leave one: a function of
    (titles of the questions, share, seed).
    """
    sizes = Counter(titles)
    order = sorted(sizes, key=lambda title: hashlib.sha256(f"{seed} {title}".encode()).digest())
    held: set[str] = set()
    count = 0
    for title in order[:-1]:
        if count >= share * len(titles):
            break
        held.add(title)
        count += sizes[title]
    return held


@functools.lru_cache(maxsize=8)
def examples_of(questions: Questions, split: str, found: Signature) -> Examples:
    """The windows of a split with their answers."""
    rows = split_rows(questions, split, found)
    answers = [squad.answers_of(row) for row in rows]
    marked = [(a[0][0], a[0][0] + len(a[0][1])) if a else None for a in answers]
    windows = questions.cut(rows, marked, keep=True)
    counted = rows.take(())
    for bad, reason in ((windows.encoded.blank, BLANK), (windows.unmarked, UNMARKED)):
        for row in bad.tolist():
            counted.drop(rows.where(row), f"question {rows[row]['id']!r}: {reason}")
    if not len(windows.encoded.row_of):
        raise DataError(f"{rows.source}:1: holds no usable rows")
    texts = [tuple(text for _, text in found) for found in answers]
    asked = Asked(rows=rows, windows=windows, answers=texts)
    return as_examples(asked, 1, dropped=len(counted.dropped))


def as_examples(asked: Asked, weight: int, dropped: int = 0) -> Examples:
    """Windows as examples that each weigh `weight`."""
    windows = asked.windows
    return Examples(
        encoded=windows.encoded,
        slots={
            "start": windows.start,
            "end": windows.end,
            "weights": np.full(len(windows.start), weight, np.float32),
        },
        cells={"context": windows.context},
        source=asked,
        dropped=dropped,
    )

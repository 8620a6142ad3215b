"""The rows of a source: where each came from, and which were left out and why."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from research.data.formats import Row
from research.data.stored import Chosen, Column, Stored
from research.errors import DataError


@dataclass
class Rows(Sequence[Row]):
    """Rows in their order, where each came from, and which were left out and why."""

    source: str
    max_bad_rows: int = 0
    rows: list[Row] | Stored | Chosen = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    file_of: array[int] = field(default_factory=lambda: array("I"))
    line_of: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def column(self, name: str) -> Column:
        """The texts of one column."""
        return Column(self.rows, name)

    def where(self, index: int) -> str:
        """ "file:line" of a row."""
        return f"{self.files[self.file_of[index]]}:{self.line_of[index]}"

    def add(self, file: str, line: int, row: Row) -> None:
        """Takes a row in."""
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        assert not isinstance(self.rows, Chosen), "a choice of rows does not grow"
        self.rows.append(row)
        self.file_of.append(len(self.files) - 1)
        self.line_of.append(line)

    def drop(self, where: str, reason: str) -> None:
        """Counts a bad row. Raises DataError for the first one over `max_bad_rows`."""
        if len(self.dropped) >= self.max_bad_rows:
            allowed = f" (bad row {len(self.dropped) + 1})" if self.max_bad_rows else ""
            raise DataError(f"{where}: {reason}{allowed}")
        self.dropped.append(f"{where}: {reason}")

    def take(self, indices: Sequence[int]) -> Rows:
        """The same rows in another choice and order."""
        chosen = Rows(self.source, self.max_bad_rows, dropped=list(self.dropped), files=self.files)
        if isinstance(self.rows, list):
            chosen.rows = [self.rows[i] for i in indices]
        else:
            chosen.rows = Chosen(self.rows, np.asarray(indices, np.int64))
        chosen.file_of = array("I", [self.file_of[i] for i in indices])
        chosen.line_of = array("Q", [self.line_of[i] for i in indices])
        return chosen


def keep_good(rows: Rows, faults: Sequence[str | None]) -> Rows:
    """The rows without a fault; the others count as bad."""
    if not any(faults):
        return rows
    good = rows.take([i for i, fault in enumerate(faults) if fault is None])
    for i, fault in enumerate(faults):
        if fault is not None:
            good.drop(rows.where(i), fault)
    if not good:
        raise DataError(f"{rows.source}:1: holds no usable rows")
    return good

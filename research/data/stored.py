"""Rows that lie in a file instead of in memory: appended one by one, then read by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from research.data.cache import Growing
from research.data.formats import Row

# Rows written and read at once; fewer than these never touch the disk.
BLOCK = 4096


class Stored(Sequence[Row]):
    """Rows of texts in files of `folder` that have no name and go with the process.

    Rows are appended, then `close` ends that, and from then on they are read. What stays in memory
    does not grow with them: the files are mapped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: list[Row] = []
        self.kinds: dict[tuple[str, ...], int] = {}
        self.files: dict[str, Growing] = {}
        self.maps: dict[str, np.ndarray] = {}
        self.written = 0

    def append(self, row: Row) -> None:
        """Adds to the end. Raises StorageError where the disk is full."""
        self.held.append(row)
        if len(self.held) == BLOCK:
            self.write()

    def write(self) -> None:
        """Moves the held rows to the files."""
        if not self.files:
            types = {"texts": np.uint8, "ends": np.int64, "firsts": np.int64, "kinds": np.int32}
            self.files = {name: Growing(self.folder, kind) for name, kind in types.items()}
            self.files["ends"].append(np.zeros(1, np.int64))
        files = self.files
        # Half a surrogate pair is no UTF-8, and yet a text of Python's.
        raw = [text.encode("utf-8", "surrogatepass") for row in self.held for text in row.values()]
        widths = np.array([len(row) for row in self.held])
        kinds = [self.kinds.setdefault(tuple(row), len(self.kinds)) for row in self.held]
        files["firsts"].append(files["ends"].size - 1 + np.cumsum(widths) - widths)
        files["kinds"].append(np.array(kinds))
        files["ends"].append(files["texts"].size + np.cumsum([len(text) for text in raw]))
        files["texts"].append(np.frombuffer(b"".join(raw), np.uint8))
        self.written += len(self.held)
        self.held = []

    def close(self) -> None:
        """Ends the appending."""
        self.maps = {name: file.mapped() for name, file in self.files.items()}
        for file in self.files.values():
            file.file.close()

    def __len__(self) -> int:
        return self.written + len(self.held)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if chosen.step == 1:
                return self.block(chosen.start, chosen.stop)
            return [self[i] for i in chosen]
        place = range(len(self))[index]
        return self.block(place, place + 1)[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), BLOCK):
            yield from self.block(start, min(start + BLOCK, len(self)))

    def block(self, start: int, stop: int) -> list[Row]:
        """The rows from `start` to before `stop`."""
        last = min(stop, self.written)
        found: list[Row] = []
        if start < last:
            kinds = self.maps["kinds"][start:last].tolist()
            names = list(self.kinds)
            texts = iter(self.cells(start, sum(len(names[kind]) for kind in kinds)))
            found = [dict(zip(names[kind], texts)) for kind in kinds]
        return found + self.held[max(0, start - self.written) : max(0, stop - self.written)]

    def cells(self, start: int, count: int, first: int = 0, step: int = 1) -> list[str]:
        """Every `step`-th of `count` texts, the first of which is the first of row `start`."""
        origin = int(self.maps["firsts"][start])
        ends = self.maps["ends"][origin : origin + count + 1]
        raw = self.maps["texts"][ends[0] : ends[-1]].tobytes()
        bounds = (ends - ends[0]).tolist()
        pairs = zip(bounds[first::step], bounds[first + 1 :: step])
        return [raw[a:z].decode("utf-8", "surrogatepass") for a, z in pairs]

    def column(self, name: str, start: int, stop: int) -> list[str]:
        """The texts of one column from row `start` to before `stop`."""
        last = min(stop, self.written)
        if len(self.kinds) != 1 or start >= last:
            return [row[name] for row in self.block(start, stop)]
        (names,) = self.kinds
        place, width = names.index(name), len(names)
        found = self.cells(start, (last - start) * width, place, width)
        return found + [row[name] for row in self.block(last, stop)]


class Chosen(Sequence[Row]):
    """Some of other rows, in an order of their own: int64 [N] says which."""

    def __init__(self, rows: Sequence[Row], places: np.ndarray) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.rows[i] for i in self.places[index].tolist()]
        return self.rows[int(self.places[index])]


class Column(Sequence[str]):
    """One column of rows; a text is fetched when it is asked for."""

    def __init__(self, rows: Sequence[Row], name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return self.rows[index][self.name]
        chosen = range(len(self))[index]
        if isinstance(self.rows, Stored) and chosen.step == 1:
            return self.rows.column(self.name, chosen.start, chosen.stop)
        return [row[self.name] for row in self.rows[index]]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

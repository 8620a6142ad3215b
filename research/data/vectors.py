"""Word vectors from text files, as GloVe's: a word and its numbers a line."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data.formats import Bad, lines_of
from research.data.sources import DAMAGE, DECOMPRESS
from research.errors import ConfigError, DataError


@functools.lru_cache(maxsize=2)
def read_vectors(path: str, size: int, changed: int) -> tuple[dict[str, int], np.ndarray]:
    """Row numbers by word and the vectors, float32 [words, D]; the first of a word counts.

    A first line of two numbers (word2vec, fastText) is skipped. `size` and `changed` are the
    file's, so that it is read again where it changed. Raises DataError "file:line: reason".
    """
    rows: dict[str, int] = {}
    found: list[np.ndarray] = []
    for number, word, values in lines(path):
        if number == 1 and values.size == 1 and word.isdecimal():
            continue
        if found and values.shape != found[0].shape:
            raise DataError(
                f"{path}:{number}: {values.size} numbers after {word[:40]!r}, "
                f"expected {found[0].size}"
            )
        if word not in rows:
            rows[word] = len(found)
            found.append(values)
    if not found:
        raise DataError(f"{path}:1: holds no vectors")
    return rows, np.stack(found)


def open_vectors(path: str) -> tuple[dict[str, int], np.ndarray]:
    """`read_vectors` of the file as it is now. Raises ConfigError where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.vectors {path}: no such file")
    stat = file.stat()
    return read_vectors(str(file), stat.st_size, stat.st_mtime_ns)


def lines(path: str) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number, word, vector) of each line."""
    suffix = Path(path).suffix.lower()
    number = 0
    try:
        with Path(path).open("rb") as raw:
            file: Any = DECOMPRESS[suffix](raw) if suffix in DECOMPRESS else raw
            for number, line in lines_of(path, file):
                if isinstance(line, Bad):
                    raise DataError(f"{path}:{number}: {line.reason}")
                word, _, rest = line.rstrip(" ").partition(" ")
                try:
                    values = np.array(rest.split(" "), np.float32)
                except ValueError:
                    raise DataError(
                        f"{path}:{number}: expected a word and numbers, found {line[:40]!r}"
                    ) from None
                if not np.isfinite(values).all():
                    raise DataError(f"{path}:{number}: a number is not finite")
                yield number, word, values
    except DAMAGE as error:
        raise DataError(f"{path}:{number + 1}: cannot be read any further: {error}") from None


def fill_table(table: np.ndarray, words: dict[str, int], path: str) -> tuple[np.ndarray, int]:
    """A copy of a table [V, D] whose rows for `words` that have a vector hold it, and their number.

    Raises ConfigError where the widths differ.
    """
    rows, vectors = open_vectors(path)
    if vectors.shape[1] != table.shape[1]:
        raise ConfigError(
            f"data.vectors {path}: vectors of {vectors.shape[1]} numbers, but the trunk's words "
            f"have {table.shape[1]}"
        )
    shared = [word for word in words if word in rows]
    filled = np.array(table)
    filled[[words[word] for word in shared]] = vectors[[rows[word] for word in shared]]
    return filled, len(shared)

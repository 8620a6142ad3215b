"""Labels: which there are, their numbers, and a few examples of each."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from research.data.rows import Rows
from research.errors import ConfigError, DataError


def check(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves. Raises ConfigError for one given twice."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.labels: {name!r} is given twice")
    return names


def infer(values: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels, sorted; by value where all of them are numbers: 2 before 10."""
    found = sorted({value for value in values if value.strip()})
    numbers = [number(value) for value in found]
    if None in numbers:
        return tuple(found)
    return tuple(sorted(found, key=lambda value: (number(value) or 0.0, value)))


def number(text: str) -> float | None:
    """A finite decimal number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def read(
    values: Sequence[str],
    names: tuple[str, ...] | None,
    limits: tuple[float, float] | None = None,
) -> tuple[np.ndarray, list[str | None]]:
    """Labels as numbers, and what is wrong with each or None.

    int32 places in `names`; without names, float32 values for regression, each of which must lie
    within `limits`. 0 where wrong.
    """
    faults: list[str | None] = []
    if names is None:
        low, high = limits or (-math.inf, math.inf)
        numbers = np.zeros(len(values), np.float32)
        for i, value in enumerate(values):
            found = number(value)
            if found is None:
                faults.append(f"label {value!r} is not a number")
            elif not low <= found <= high:
                faults.append(f"label {value} is outside [{low:g}, {high:g}]")
            else:
                faults.append(None)
                numbers[i] = found
        return numbers, faults
    places = {name: i for i, name in enumerate(names)}
    for value in values:
        faults.append(None if value in places else unknown(value, names))
    return np.array([places.get(value, 0) for value in values], np.int32), faults


def weights(rows: Rows, column: str) -> np.ndarray:
    """What each row weighs, float32 [N]. Raises DataError for what is no number from 0 up."""
    found = [number(row[column]) for row in rows]
    for i, value in enumerate(found):
        if value is None or value < 0:
            raise DataError(
                f"{rows.where(i)}: {column!r} {rows[i][column]!r} is no number from 0 up"
            )
    return np.array(found, np.float32)


def unknown(value: str, names: tuple[str, ...]) -> str:
    """That a label is none of those there are."""
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"label {value!r} is not among {listed}"


def split(value: str, separator: str) -> list[str]:
    """The labels in a cell, a JSON list or a text with separators; none in an empty one.

    Raises ValueError with the reason for a cell that begins like a JSON list and is none of texts.
    """
    if value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            raise ValueError(f"labels {value!r} are not a JSON list") from None
        if not all(isinstance(name, str) for name in found):
            raise ValueError(f"labels {value!r} are not a JSON list of texts")
        return list(found)
    return [name for part in value.split(separator) if (name := part.strip())]


def read_many(
    values: Sequence[str], names: tuple[str, ...], separator: str
) -> tuple[np.ndarray, list[str | None]]:
    """Which of `names` each cell holds, int32 [N, C] of 0 and 1, and what is wrong with each."""
    places = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(values), len(names)), np.int32)
    faults: list[str | None] = []
    for row, value in zip(table, values):
        try:
            found = split(value, separator)
        except ValueError as error:
            faults.append(str(error))
            continue
        strange = [name for name in found if name not in places]
        faults.append(unknown(strange[0], names) if strange else None)
        row[[places[name] for name in found if name in places]] = 1
    return table, faults


def infer_many(values: Iterable[str], separator: str) -> tuple[str, ...]:
    """The distinct labels in cells of several, as `infer` orders them; broken cells have none."""
    found: set[str] = set()
    for value in values:
        with contextlib.suppress(ValueError):
            found.update(split(value, separator))
    return infer(found)


def all_occur(numbers: np.ndarray, names: tuple[str, ...], source: str) -> None:
    """Raises DataError for a label without a row: it could not be learned."""
    counts = numbers.sum(0) if numbers.ndim == 2 else np.bincount(numbers, minlength=len(names))
    for name, count in zip(names, counts.tolist()):
        if count == 0:
            raise DataError(f"{source}:1: data.labels names {name!r}, which no row has")


def facts(numbers: np.ndarray, names: tuple[str, ...]) -> dict[str, object]:
    """What a task may want to know of the labels of train, by the names of a task's fields."""
    if numbers.dtype == np.float32:
        return {"label_mean": float(numbers.mean(dtype=np.float64))}
    if numbers.ndim == 2:
        counts = tuple(numbers.sum(0).tolist())
        return {"label_counts": counts, "train_rows": len(numbers)}
    return {"label_counts": tuple(np.bincount(numbers, minlength=len(names)).tolist())}


def draws(numbers: np.ndarray, flatten: float) -> np.ndarray:
    """How often each example is drawn beside the others, float64 [N] of mean 1.

    A label of n examples is drawn in proportion to n^(1 - flatten): 0 leaves the labels as they
    are, 1 draws all of them equally often (the smoothing of multilingual sampling: Conneau &
    Lample, 2019).
    """
    counts = np.bincount(numbers)
    weights = counts[numbers].astype(np.float64) ** -flatten
    return weights / weights.mean()


def few(numbers: np.ndarray, names: tuple[str, ...], shots: int, seed: int) -> list[int]:
    """`shots` examples of each label, in their order: a function of (labels, shots, seed).

    Raises DataError for a label with fewer.
    """
    chosen: list[int] = []
    for label, name in enumerate(names):
        (having,) = np.nonzero(numbers == label)
        if len(having) < shots:
            raise DataError(
                f"data.shots is {shots}, but label {name!r} has only {len(having)} rows in train"
            )
        key = np.array([seed % 2**64, label], np.uint64)
        drawn = np.argsort(np.random.Philox(key=key).random_raw(len(having)), kind="stable")
        chosen += having[drawn[:shots]].tolist()
    return sorted(chosen)

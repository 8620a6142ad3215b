"""Labels: which there are, their numbers, and a few examples of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

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
    values: Sequence[str], names: tuple[str, ...] | None
) -> tuple[np.ndarray, list[str | None]]:
    """Labels as numbers, and what is wrong with each or None.

    int32 places in `names`; without names, float32 values for regression. 0 where wrong.
    """
    faults: list[str | None] = []
    if names is None:
        numbers = np.zeros(len(values), np.float32)
        for i, value in enumerate(values):
            found = number(value)
            faults.append(None if found is not None else f"label {value!r} is not a number")
            numbers[i] = found or 0.0
        return numbers, faults
    places = {name: i for i, name in enumerate(names)}
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    for value in values:
        known = value in places
        faults.append(None if known else f"label {value!r} is not among {listed}")
    return np.array([places.get(value, 0) for value in values], np.int32), faults


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

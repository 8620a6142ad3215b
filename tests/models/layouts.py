"""Batches for these tests, built by hand: the same examples one a row, or several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Example:
    """Tokens of one text, and the id by which noise knows it."""

    id: int
    tokens: tuple[int, ...]
    types: tuple[int, ...] | None = None
    label: int = 0


def examples(lengths: Sequence[int], *, vocab_size: int, seed: int = 0) -> list[Example]:
    """Random texts of the lengths given, with ids 100, 101, ..."""
    rng = np.random.default_rng(seed)
    return [
        Example(
            id=100 + i,
            tokens=tuple(rng.integers(1, vocab_size, length).tolist()),
            types=tuple((np.arange(length) >= length // 2).astype(int).tolist()),
            label=int(rng.integers(2)),
        )
        for i, length in enumerate(lengths)
    ]


def layout(
    rows: Sequence[Sequence[Example]], width: int, *, places: int = 0
) -> dict[str, jnp.ndarray]:
    """A batch [B, T] with the examples of each row side by side, and [B, M] facts about them; M is
    at least `places`."""
    B, M = len(rows), max(places, *(len(row) for row in rows))
    tokens = {name: np.zeros((B, width), np.int32) for name in ("tokens", "positions", "types")}
    tokens["segments"] = np.zeros((B, width), np.int32)
    facts = {name: np.zeros((B, M), np.int32) for name in ("ids", "starts", "lengths", "labels")}
    facts["weights"] = np.zeros((B, M), np.float32)
    for b, row in enumerate(rows):
        start = 0
        for m, example in enumerate(row):
            here = slice(start, start + len(example.tokens))
            tokens["tokens"][b, here] = example.tokens
            tokens["types"][b, here] = example.types or 0
            tokens["positions"][b, here] = np.arange(len(example.tokens))
            tokens["segments"][b, here] = m + 1
            for name, value in (
                ("ids", example.id),
                ("starts", start),
                ("lengths", len(example.tokens)),
                ("labels", example.label),
                ("weights", 1),
            ):
                facts[name][b, m] = value
            start = here.stop
    return {name: jnp.asarray(array) for name, array in (tokens | facts).items()}


def cut(x: np.ndarray, batch: dict[str, jnp.ndarray]) -> dict[int, np.ndarray]:
    """What [B, T, ...] holds of each example, by its id."""
    return {
        int(batch["ids"][b, m]): np.asarray(x[b])[np.asarray(batch["segments"][b]) == m + 1]
        for b in range(x.shape[0])
        for m in range(batch["ids"].shape[1])
        if batch["weights"][b, m]
    }

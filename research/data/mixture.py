"""Mixtures: how often each source, or each unit, is drawn. Pure arithmetic on (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Sources of `sizes` units, one after another, of which an epoch draws shares like `weights`.

    An epoch has as many draws as there are units: of source s the same number in every epoch,
    within one of its share. A source goes through its units in a new order every time, each of them
    once before any comes again, however little of it an epoch draws.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Draws of each source in an epoch, by largest remainder: Mixture((10, 10), (2, 1)) is
        (13, 7)."""
        total, weights = sum(self.sizes), np.asarray(self.weights)
        shares = weights / weights.sum() * total
        counts = np.floor(shares).astype(np.int64)
        largest = np.argsort(counts - shares, kind="stable")
        counts[largest[: total - int(counts.sum())]] += 1
        return tuple(counts.tolist())

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The units of an epoch, int64 [units]: a function of (seed, epoch) alone."""
        drawn, first = [], 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts)):
            start, stop = epoch * count, (epoch + 1) * count
            for turn in range(start // size, -(-stop // size)):
                low, high = max(start - turn * size, 0), min(stop - turn * size, size)
                drawn.append(first + shuffled(size, seed, turn, source + 1)[low:high])
            first += size
        units = np.concatenate(drawn)
        return units[shuffled(len(units), seed, epoch, 0)]


def shuffled(size: int, seed: int, turn: int, stream: int) -> np.ndarray:
    """A permutation, int64 [size], from Philox's raw output, which numpy never changes (NEP 19)."""
    philox = np.random.Philox(
        key=np.array([seed % 2**64, turn], np.uint64),
        counter=np.array([0, 0, 0, stream], np.uint64),
    )
    return np.argsort(philox.random_raw(size), kind="stable")


def drawn(weights: np.ndarray, offset: float) -> np.ndarray:
    """Systematic sampling: N draws from N weights, each weight's draws within one of N times its
    share; int64 [N], ascending. `offset` in [0, 1) is where the first falls."""
    ends = np.cumsum(weights)
    points = (np.arange(len(weights)) + offset) * (ends[-1] / len(weights))
    return np.minimum(np.searchsorted(ends, points, side="right"), len(weights) - 1)

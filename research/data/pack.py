"""Examples of uneven length into few rows of one length, in few static shapes. Pure numpy."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.errors import ConfigError

# "blocks" keeps the examples of a unit in one row, in their order.
Layout = Literal["packed", "padded", "blocks"]
Shape = tuple[int, int, int]

TILE = 8
# Steps that are tried with every candidate for T.
TRIED = 128
# Attention's share grows with T: at this many tokens a row it costs as much as all the rest
# (measured at a width of 384 on a CPU; wider trunks and accelerators mind less).
ATTENTION = 512
# Another shape is another compilation; it has to save this share of the cells, and as many as this
# number of steps has, which is about what compiling takes.
WORTH, COMPILING = 0.02, 48


@dataclass(frozen=True)
class Plan:
    """Static shapes (B rows, T tokens, M examples a row) such that every step fits one of them.

    `shapes` ascend in B. `padding` is the share of cells without a token over the planned steps.
    """

    shapes: tuple[Shape, ...]
    padding: float
    layout: Layout = "packed"

    @property
    def row_length(self) -> int:
        """T."""
        return self.shapes[0][1]

    def place(
        self, lengths: np.ndarray, begins: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row and first cell of each example of a step, int64 [N] each; `begins`, bool [N], says
        which examples are the first of their unit, None that all are."""
        if self.layout == "padded":
            return np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
        if self.layout == "blocks":
            begins = np.ones(len(lengths), bool) if begins is None else begins
            row, before = np.cumsum(begins) - 1, np.cumsum(lengths) - lengths
            return row, before - before[begins][row]
        return pack(lengths, self.row_length)

    def shape(self, rows: np.ndarray) -> Shape:
        """The smallest shape for examples placed in these rows."""
        used, most = extent(rows)
        for shape in self.shapes:
            if shape[0] >= used and shape[2] >= most:
                return shape
        raise ValueError(f"{used} rows of up to {most} examples fit none of {self.shapes}")


def pack(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Places examples in rows of `row_length` cells: (row, start), int64 [N] each.

    Best fit decreasing: each example, the longest first, goes where it leaves the least room; a
    row is opened only where none has room. At most 11/9 of the fewest possible rows and 6/9 more
    (Johnson et al., 1974; Dosa, 2007). Raises ValueError for an example longer than a row.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and not 0 < lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths {lengths.min()} to {lengths.max()} in rows of {row_length}")
    row, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    spaces: list[tuple[int, int]] = []
    opened = 0
    order = np.argsort(-lengths, kind="stable")
    for example, length in zip(order.tolist(), lengths[order].tolist()):
        at = bisect_left(spaces, (length, -1))
        if at < len(spaces):
            space, into = spaces.pop(at)
        else:
            space, into = row_length, opened
            opened += 1
        row[example], start[example] = into, row_length - space
        if space > length:
            insort(spaces, (space - length, into))
    return row, start


def extent(rows: np.ndarray) -> tuple[int, int]:
    """(rows in use, most examples in one of them)."""
    counts = np.bincount(rows)
    return len(counts), int(counts.max())


def slots_of(row: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The number of each example within its row, by place: int64 [N]."""
    order = np.lexsort((start, row))
    ordered = row[order]
    first = np.searchsorted(ordered, ordered)
    slots = np.empty(len(row), np.int64)
    slots[order] = np.arange(len(row)) - first
    return slots


def plan(
    steps: Sequence[np.ndarray],
    *,
    layout: Layout = "packed",
    row_length: int | None = None,
    shapes: int = 3,
    multiple: int = 1,
    every: np.ndarray | None = None,
    usual: Sequence[np.ndarray] | None = None,
) -> Plan:
    """Static shapes for a run whose step s has examples of the lengths `steps[s]`.

    T is `row_length`, or else what costs least; up to `shapes` values of B, each divisible by
    `multiple`, are chosen to pad the fewest rows; M is a power of two. Chosen for the `usual` steps
    of such a run where these are given, shapes grow only where `steps` do not fit: so runs that
    differ in their order have one compiled program. Where `steps` are only a sample, `every` holds
    the lengths of all examples there are, and up to two more shapes are added, the last of which
    takes any step of as many examples as the largest in the sample. Raises ConfigError where an
    example is longer than `row_length`.
    """
    judged = steps if usual is None else usual
    longest = max(int(lengths.max()) for some in (steps, judged) for lengths in some)
    if every is not None:
        longest = max(longest, int(every.max()))
    if row_length is not None and row_length < longest:
        raise ConfigError(
            f"data.row_length is {row_length}, but the longest example has {longest} tokens"
        )
    if layout == "padded":
        length = row_length or round_up(longest, TILE)
    else:
        length = row_length or choose_length(judged, longest, multiple, shapes, len(steps))
    needed, most = needs(judged, layout, length, multiple)
    sizes = choose_rows(needed, shapes, len(steps))
    if usual is not None:
        needed, more = needs(steps, layout, length, multiple)
        sizes[-1], most = max(sizes[-1], int(needed.max())), max(most, more)
    found = [(size, length, most) for size in sizes]
    if every is not None and layout == "packed":
        found += rescue(found[-1], every, max(map(len, steps)), multiple)
    cells = rows_spent(needed, sizes) * length
    padding = 1 - sum(int(lengths.sum()) for lengths in steps) / cells
    return Plan(tuple(found), padding, layout)


def needs(
    steps: Sequence[np.ndarray], layout: Layout, length: int, multiple: int
) -> tuple[np.ndarray, int]:
    """The rows of `length` cells that every step takes, int64 [S], and a power of two that no row's
    examples exceed: empty places cost nearly nothing."""
    if layout == "padded":
        return np.array([round_up(len(lengths), multiple) for lengths in steps]), 1
    extents = [extent(pack(lengths, length)[0]) for lengths in steps]
    most = max(count for _, count in extents)
    return np.array([round_up(rows, multiple) for rows, _ in extents]), 1 << (most - 1).bit_length()


def plan_blocks(
    lengths: np.ndarray, bounds: np.ndarray, count: int, row_length: int | None, multiple: int
) -> Plan:
    """The one shape of `count` units a step, each the row of its examples (see `Examples.bounds`).

    Raises ConfigError where a unit is longer than `row_length`.
    """
    totals = np.add.reduceat(lengths, bounds[:-1])
    longest = int(totals.max())
    length = row_length or round_up(longest, TILE)
    if longest > length:
        raise ConfigError(f"data.row_length is {length}, but the longest row has {longest} tokens")
    shape = (round_up(count, multiple), length, int(np.diff(bounds).max()))
    return Plan((shape,), 1 - int(totals.sum()) / (len(totals) * length), "blocks")


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def rows_spent(needed: np.ndarray, sizes: list[int]) -> int:
    """Rows over all steps, where each takes the smallest of `sizes` that holds what it needs."""
    return int(np.asarray(sizes)[np.searchsorted(sizes, needed)].sum())


def choose_length(
    steps: Sequence[np.ndarray], longest: int, multiple: int, shapes: int, count: int
) -> int:
    """The row length, of those that texts of other lengths have too, at which the tried steps cost
    least; or what the longest example takes where that saves more than `WORTH` of it.

    Cost is cells, with a surcharge for attention, which grows with the row, in a run of `count`
    steps.
    """
    tried = [steps[i] for i in np.linspace(0, len(steps) - 1, min(TRIED, len(steps))).astype(int)]
    tried = tried[: max(1, round(4096 * TRIED / 32 / max(map(len, tried))))]
    low = round_up(longest, TILE)
    high = max(low, min(4 * low, max(int(lengths.sum()) for lengths in tried)))

    def cost(length: int) -> float:
        rows = [extent(pack(lengths, length)[0])[0] for lengths in tried]
        needed = np.array([round_up(count, multiple) for count in rows])
        spent = rows_spent(needed, choose_rows(needed, shapes, count))
        return spent * length * (1 + length / ATTENTION)

    common = [length for length in common_lengths(high) if length >= low]
    costs = {length: cost(length) for length in common}
    best = min(costs, key=lambda length: costs[length])
    return low if cost(low) < (1 - WORTH) * costs[best] else best


def common_lengths(high: int) -> list[int]:
    """Multiples of 8, four to an octave, up to the first that is `high` or more."""
    found = [TILE]
    while found[-1] < high:
        found.append(found[-1] + max(TILE, 1 << (found[-1].bit_length() - 3)))
    return found


def choose_rows(needed: np.ndarray, shapes: int, steps: int | None = None) -> list[int]:
    """Up to `shapes` values of B, ascending, that pad the fewest rows over all steps.

    Dynamic programming over the distinct needs: cost[k][j] is that of the first j of them with k
    values. Each value has to pay for its compilation in a run of `steps` steps, of which `needed`
    may be a sample.
    """
    values, counts = np.unique(needed, return_counts=True)
    totals = np.concatenate([[0], np.cumsum(counts)])
    size = len(values)
    cost = np.concatenate([[0.0], np.full(size, np.inf)])
    chosen: list[list[int]] = []
    bests: list[float] = []
    origins: list[np.ndarray] = []
    for k in range(min(shapes, size)):
        # Entry [i, j]: values i .. j-1 share the largest of them.
        step = cost[:, None] + values[None, :] * (totals[None, 1:] - totals[:, None])
        step[np.arange(size + 1)[:, None] > np.arange(size)[None, :]] = np.inf
        origins.append(step.argmin(axis=0))
        cost = np.concatenate([[0.0], step.min(axis=0)])
        bests.append(float(cost[-1]))
        picks, j = [], size
        for level in range(k, -1, -1):
            picks.append(int(values[j - 1]))
            j = int(origins[level][j - 1])
            if j == 0:
                break
        chosen.append(picks[::-1])
    price = bests[-1] * max(WORTH, COMPILING / (steps or len(needed)))
    return chosen[int(np.argmin(np.array(bests) + price * np.arange(len(bests))))]


def rescue(largest: Shape, every: np.ndarray, count: int, multiple: int) -> list[Shape]:
    """A shape for any step of `count` examples, and before it one for steps a little over the plan.

    None where the largest planned shape takes any step. Neither is compiled before it is met.

    Any two rows of a packing hold more than one row's cells together, or the later one would not
    have been opened: R rows hold more than R/2 of them.
    """
    rows, length, most = largest
    # A step that spans two epochs may hold an example twice.
    repeats = -(-(count - 1) // len(every)) + 1
    worst = int(np.sort(np.repeat(every, repeats))[-count:].sum())
    bound = round_up(min(count, max(1, -(-2 * worst // length) - 1)), multiple)
    slots = min(count, length // int(every.min()))
    if bound <= rows and slots <= most:
        return []
    last = (max(rows, bound), length, max(most, slots))
    spare = (round_up(rows + rows // 8 + 1, multiple), length, min(last[2], most + most // 2 + 1))
    return [spare, last] if spare[0] < last[0] else [last]

"""Batches as a pure function of (seed, step): which examples, and where their tokens lie."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research.data.mixture import Mixture, drawn
from research.data.pack import Layout, Plan, Shape, plan, plan_blocks, slots_of
from research.data.tokenize import BEGINS, SPECIAL, Encoded
from research.errors import ConfigError

Batch = dict[str, np.ndarray]

# Examples up to which a run is planned step by step; a longer one is planned from a sample.
PLANNED = 400_000
# Whatever its seed, a run's shapes are chosen for steps in the order of seed 0: as many as it has,
# and at least so many, in which most orders find what they need, but of no more examples than this.
USUAL, USUAL_EXAMPLES = 64, 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Encoded texts with what is to be learned of each.

    `slots`: arrays [examples, ...] that a batch holds as [B, M, ...], 0 at empty places; `cells`:
    arrays [tokens, ...] that it holds as [B, T, ...], -1 at padding. `units` int64 [examples],
    ascending, keeps examples together (the texts of a pair): an order shuffles units, and
    `batch_size` counts them; None is one each. `draws` float64 [units] is how often an epoch of an
    endless stream draws each beside the others; None is each once. With a `mixture` it says which
    units an epoch has. `source` is what the rows were, for tasks that score or tell by it;
    `dropped` counts the bad rows left out, `left_out` the good ones, by reason.
    """

    encoded: Encoded
    slots: Mapping[str, np.ndarray]
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)
    units: np.ndarray | None = None
    draws: np.ndarray | None = None
    mixture: Mixture | None = None
    source: Any = None
    dropped: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over tokens and what is to be learned."""
        digest = hashlib.sha256(self.encoded.fingerprint.encode())
        arrays = {"row_of": self.encoded.row_of, **self.slots, **self.cells}
        for name, array in (("units", self.units), ("draws", self.draws)):
            if array is not None:
                arrays[name] = array
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Unit u is the examples [bounds[u], bounds[u + 1]): int64 [units + 1]."""
        count = len(self.encoded.row_of)
        if self.units is None:
            return np.arange(count + 1)
        return np.append(np.flatnonzero(np.diff(self.units, prepend=-1)), count)

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """Which examples are the first of their unit: bool [examples]."""
        return np.bincount(self.bounds[:-1], minlength=self.bounds[-1]) > 0


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """How examples become arrays: see `Texts` for the fields of the same names."""

    layout: Layout = "packed"
    row_length: int | None = None
    shapes: int = 3
    words: bool = False


class Batches:
    """Batch s of a run, or of one pass over a split.

    With `steps`, the endless concatenation of one permutation an epoch, cut at s x batch_size:
    nothing is dropped where epochs meet. Without, file order, each example once, the last batch
    partly empty. `batch_size` and `rows` count units (see `Examples`). `multiple` divides the rows
    of every batch; `host` is (index, count), and only this host's rows are returned. Neither
    changes which examples a step holds, nor `fingerprint`.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        multiple: int = 1,
        host: tuple[int, int] = (0, 1),
        arrangement: Arrangement = Arrangement(),
    ) -> None:
        count = len(examples.bounds) - 1
        check(batch_size, steps, multiple, host, count)
        self.examples, self.batch_size, self.seed, self.host = examples, batch_size, seed, host
        self.arrangement, self.multiple = arrangement, math.lcm(multiple, host[1])
        self.shuffled = steps is not None
        self.rows = count
        self.steps = math.ceil(count / batch_size) if steps is None else steps
        self.lengths = examples.encoded.lengths
        self.permutation = functools.lru_cache(maxsize=2)(self.permute)
        self.plan = self.make_plan(self.multiple)
        order = f"{seed} {examples.mixture or 'shuffled'}" if self.shuffled else "in order"
        settings = f"{examples.fingerprint} {batch_size} {order} {arrangement}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()[:16]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every (B, T, M) that a batch may have, over all hosts, in ascending B."""
        return self.plan.shapes

    @property
    def padding(self) -> float:
        """The share of cells without a token."""
        return self.plan.padding

    def words(self) -> np.ndarray:
        """The ids of the words that the examples have, int32 [U]; see `Encoded.seen`."""
        return self.examples.encoded.seen

    def stats(self) -> dict[str, Any]:
        """What the audit says of the data; JSON values."""
        return {
            "examples": len(self.lengths),
            "tokens": int(self.lengths.sum()),
            "longest": int(self.lengths.max()),
            "truncated": self.examples.encoded.truncated,
            "tokens_truncated": self.examples.encoded.lost,
            "dropped": self.examples.dropped,
            **{f"left out: {reason}": count for reason, count in self.examples.left_out.items()},
            "padding": round(self.padding, 4),
            "shapes": [list(shape) for shape in self.shapes],
        }

    def make_plan(self, multiple: int) -> Plan:
        """Exact where the run is short enough, else from evenly spread steps and a rescue."""
        if self.arrangement.layout == "blocks":
            count = self.batch_size if self.shuffled else min(self.batch_size, self.rows)
            row_length = self.arrangement.row_length
            return plan_blocks(self.lengths, self.examples.bounds, count, row_length, multiple)
        most = max(1, PLANNED // self.batch_size)
        # How many examples a step has is known beforehand only where each is a unit.
        exact = self.steps <= most or self.examples.units is not None
        chosen = np.arange(self.steps)
        if not exact:
            chosen = np.unique(np.linspace(0, self.steps - 1, most).astype(np.int64))
        return plan(
            [self.lengths[self.examples_of(int(step))] for step in chosen],
            layout=self.arrangement.layout,
            row_length=self.arrangement.row_length,
            shapes=self.arrangement.shapes,
            multiple=multiple,
            every=None if exact else self.lengths,
            usual=self.usual() if self.shuffled else None,
        )

    def usual(self) -> list[np.ndarray]:
        """Lengths of the examples of steps as another run on these data has them, the same whatever
        this run's seed."""
        other = copy.copy(self)
        other.seed, other.permutation = 0, functools.lru_cache(maxsize=2)(other.permute)
        count = min(max(USUAL, self.steps), max(1, USUAL_EXAMPLES // self.batch_size))
        return [self.lengths[other.examples_of(step)] for step in range(count)]

    def permute(self, epoch: int) -> np.ndarray:
        """The order of an epoch, int64 [units]: a function of (seed, epoch) alone.

        Sorts Philox's raw output, which numpy promises never to change (NEP 19).
        """
        if self.examples.mixture is not None:
            return self.examples.mixture.order(self.seed, epoch)
        key = np.array([self.seed % 2**64, epoch], np.uint64)
        stream = np.random.Philox(key=key)
        order = np.argsort(stream.random_raw(self.rows), kind="stable")
        if self.examples.draws is None:
            return order
        chosen = order[drawn(self.examples.draws[order], stream.random_raw(1)[0] / 2**64)]
        return chosen[np.argsort(stream.random_raw(self.rows), kind="stable")]

    def examples_of(self, step: int) -> np.ndarray:
        """The examples of a step, int64 [N]. Raises IndexError past the end of a pass."""
        if step < 0 or (not self.shuffled and step >= self.steps):
            raise IndexError(f"step {step} of {self.steps}")
        start = step * self.batch_size
        if not self.shuffled:
            return self.members(np.arange(start, min(start + self.batch_size, self.rows)))
        pieces, stop = [], start + self.batch_size
        while start < stop:
            epoch, first = divmod(start, self.rows)
            pieces.append(self.permutation(epoch)[first : first + stop - start])
            start += len(pieces[-1])
        return self.members(np.concatenate(pieces))

    def members(self, units: np.ndarray) -> np.ndarray:
        """The examples of units, in their order."""
        if self.examples.units is None:
            return units
        first, last = self.examples.bounds[units], self.examples.bounds[units + 1]
        sizes = last - first
        before = np.cumsum(sizes) - sizes
        return np.repeat(first - before, sizes) + np.arange(int(sizes.sum()))

    def batch(self, step: int) -> Batch:
        """The arrays of `research`'s docstring for this host's rows of step `step`."""
        chosen = self.examples_of(step)
        row, start = self.plan.place(self.lengths[chosen], self.examples.begins[chosen])
        shape = self.plan.shape(row)
        index, share = self.host[0], shape[0] // self.host[1]
        mine = row // share == index
        own = (chosen[mine], row[mine] - index * share, start[mine], (share, *shape[1:]))
        return fill(self.examples, *own, words=self.arrangement.words)


def check(
    batch_size: int, steps: int | None, multiple: int, host: tuple[int, int], count: int
) -> None:
    """Raises ConfigError for sizes that make no batches."""
    for name, value in (("batch_size", batch_size), ("steps", steps), ("multiple", multiple)):
        if value is not None and value < 1:
            raise ConfigError(f"batches: {name} is {value}, but must be positive")
    if not 0 <= host[0] < host[1]:
        raise ConfigError(f"batches: host {host} is not (index, count) with index < count")
    if count == 0:
        raise ConfigError("batches: there are no examples")


def fill(
    examples: Examples,
    chosen: np.ndarray,
    row: np.ndarray,
    start: np.ndarray,
    shape: Shape,
    *,
    words: bool = False,
) -> Batch:
    """A batch of shape (B, T, M) with example chosen[i] in row[i] from cell start[i] on."""
    rows, length, places = shape
    encoded = examples.encoded
    lengths = encoded.lengths[chosen]
    before = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    source = np.repeat(encoded.offsets[chosen], lengths) + within
    target = np.repeat(row * length + start, lengths) + within
    slot = slots_of(row, start)

    def cells(values: np.ndarray, empty: int = 0) -> np.ndarray:
        array = np.full((rows * length, *values.shape[1:]), empty, np.int32)
        array[target] = values
        return array.reshape(rows, length, *values.shape[1:])

    def slots(values: np.ndarray, dtype: Any = np.int32, empty: int = 0) -> np.ndarray:
        array = np.full((rows, places, *values.shape[1:]), empty, dtype)
        array[row, slot] = values
        return array

    batch = {
        "tokens": cells(encoded.tokens[source]),
        "positions": cells(within),
        "segments": cells(np.repeat(slot + 1, lengths)),
        "types": cells(encoded.types[source]),
        "ids": slots(chosen, empty=-1),
        "starts": slots(start),
        "lengths": slots(lengths),
    }
    batch |= {name: slots(x[chosen], x.dtype) for name, x in examples.slots.items()}
    batch |= {name: cells(x[source], empty=-1) for name, x in examples.cells.items()}
    if words:
        kinds = encoded.words[source]
        number = np.cumsum(kinds == BEGINS)
        # The count before an example's first token: every example starts at word 0.
        earlier = np.concatenate([[0], number])[np.repeat(before, lengths)]
        batch["words"] = cells(np.where(kinds == SPECIAL, -1, number - earlier - 1), empty=-1)
    return batch

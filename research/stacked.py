"""States and batches of several runs as one: stacked where they differ, held once where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.adapt import Flat, Rule
from research.data.batches import Batch, Batches
from research.data.pack import Plan
from research.step import TrainState


class Orders:
    """Step s of every order of the data."""

    def __init__(self, batches: list[Batches]) -> None:
        self.batches = batches

    def batch(self, step: int) -> list[Batch]:
        """The batches of a step."""
        return [one.batch(step) for one in self.batches]


class Gathered:
    """States of single runs, one after the other, on the host; what does not learn and is the same
    for all only once, on the devices."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.shared: Flat = {}
        self.apart: list[dict[str, np.ndarray]] = []
        self.states: list[TrainState] = []

    def add(self, state: TrainState) -> None:
        """The next state."""
        flat = flatten_dict(state.params, sep="/")
        frozen = {path: x for path, x in flat.items() if self.rules[path].fixed}
        self.shared = self.shared or frozen
        first = {path: np.asarray(x) for path, x in self.shared.items()}
        found = {path: np.asarray(x) for path, x in frozen.items()}
        self.apart.append({p: x for p, x in found.items() if not np.array_equal(x, first[p])})
        self.states.append(jax.device_get(own_part(state, flat.keys() - frozen.keys())))

    def placed(self, abstract: TrainState, mesh: Mesh, axis: str | None) -> dict[str, Any]:
        """The state of all, as `make_program` takes it."""
        apart = sorted({path for one in self.apart for path in one})
        first = {path: np.asarray(self.shared[path]) for path in apart}
        states = [
            state.replace(params=state.params | first | one)  # type: ignore[attr-defined]
            for state, one in zip(self.states, self.apart)
        ]

        def stack(leaf: Any, *parts: np.ndarray) -> jax.Array:
            where = NamedSharding(mesh, PartitionSpec(axis, *leaf.sharding.spec))
            return jax.device_put(np.stack(parts), where)

        own = jax.tree.map(stack, own_part(abstract, states[0].params), *states)
        whole = NamedSharding(mesh, PartitionSpec())
        own = own.replace(step=jax.device_put(states[0].step, whole))
        return {"shared": {p: x for p, x in self.shared.items() if p not in apart}, "own": own}


def own_part(state: Any, paths: Iterable[str]) -> Any:
    """A state, concrete or abstract, with a flat dict of `paths` alone for its parameters."""
    flat = flatten_dict(state.params, sep="/")
    return state.replace(params={path: flat[path] for path in sorted(paths)})


def fit(batches: list[Batches]) -> None:
    """Gives several orders one shape, the largest that any of them needs."""
    if len(batches) == 1:
        return
    length = max(one.plan.row_length for one in batches)
    for one in batches:
        if one.plan.row_length < length:
            # The fingerprint stays that of the run alone: what a step holds is the same.
            one.arrangement = dataclasses.replace(one.arrangement, row_length=length)
            one.plan = one.make_plan(one.multiple)
    shapes = [shape for one in batches for shape in one.shapes]
    rows, most = max(shape[0] for shape in shapes), max(shape[2] for shape in shapes)
    for one in batches:
        tokens = one.lengths.sum() * one.batch_size / one.rows
        padding = 1 - float(tokens) / (rows * length)
        one.plan = Plan(((rows, length, most),), padding, one.plan.layout)

"""Strategies that tell the blocks of a trunk apart: LayerDecay and GradualUnfreeze.

Levels: 0 is the embeddings, i + 1 is block i of L, L + 1 is all that comes after the blocks. A
parameter of a scanned stack has the levels of all its blocks, 1 to L, along its first axis.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from research.adapt import TRUNK, Flat, Leaves, Rule, Strategy
from research.errors import ConfigError

SCANNED = "backbone/blocks/"
AFTER = re.compile(r"^backbone/(pooler|final_norm|unembed)/")


def depth_of(leaves: Leaves, strategy: Strategy) -> int:
    """How many blocks the trunk has. Raises ConfigError for a trunk without any."""
    numbers = [int(m[1]) for path in leaves if (m := re.match(r"backbone/block_(\d+)/", path))]
    stacks = [leaf.shape[0] for path, leaf in leaves.items() if path.startswith(SCANNED)]
    if not numbers and not stacks:
        raise ConfigError(f"adapt: {strategy} needs a trunk of several blocks, backbone/block_0 on")
    return max([1 + number for number in numbers] + stacks)


def levels_of(path: str, depth: int) -> tuple[int, ...]:
    """The level of a parameter; for one of a scanned stack, that of each layer."""
    if path.startswith(SCANNED):
        return tuple(range(1, depth + 1))
    if block := re.match(r"backbone/block_(\d+)/", path):
        return (int(block[1]) + 1,)
    return (0,) if TRUNK.match(path) and not AFTER.match(path) else (depth + 1,)


@dataclass(frozen=True)
class LayerDecay(Strategy):
    """Each level learns at `factor` times the rate of the one above it (Howard & Ruder, 2018; Clark
    et al., 2020): block i of L at factor ** (L - i), the embeddings at factor ** (L + 1)."""

    single: ClassVar[bool] = True
    factor: float = 0.9

    def check(self, leaves: Leaves) -> None:
        if not 0 < self.factor <= 1:
            raise ConfigError(f"adapt: {self}: factor is above 0 and at most 1")
        depth_of(leaves, self)

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        depth, found = depth_of(leaves, self), {}
        for path, rule in rules.items():
            factors = [self.factor ** (depth + 1 - level) for level in levels_of(path, depth)]
            if path.startswith(SCANNED):
                layers = tuple(a * b for a, b in zip(rule.layers or (1.0,) * depth, factors))
                found[path] = dataclasses.replace(rule, layers=layers)
            else:
                found[path] = dataclasses.replace(rule, multiplier=rule.multiplier * factors[0])
        return found


@dataclass(frozen=True)
class GradualUnfreeze(Strategy):
    """Blocks learn one after the other, from the top down (Howard & Ruder, 2018).

    `at`: the step from which each block learns, the top one first; what is left of the trunk, its
    embeddings included, learns from the last of them. Or `patience`: whenever so many evaluations
    in a row were no better than the best, by the config's `track`, one block more learns, and after
    the last block the embeddings. The head learns from step 0. Time and memory are those of the
    last stage from the first step on: it is one program, gradients and Adam's moments are kept for
    all that ever learns, so that a block starts with moments that fit it; only the updates wait.
    """

    single: ClassVar[bool] = True
    at: tuple[int, ...] = ()
    patience: int | None = None

    def check(self, leaves: Leaves) -> None:
        depth = depth_of(leaves, self)
        if self.patience is not None:
            if self.at or self.patience < 1:
                raise ConfigError(f"adapt: {self}: patience is at least 1, and excludes at")
            return
        if not self.at or list(self.at) != sorted(self.at) or self.at[0] < 0:
            raise ConfigError(
                f"adapt: {self}: at is a list of steps in ascending order, or else set patience"
            )
        if len(self.at) > depth + 1:
            raise ConfigError(
                f"adapt: {self}: there are {len(self.at)} steps for {depth} blocks and embeddings"
            )

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        depth, found = depth_of(leaves, self), {}
        for path, rule in rules.items():
            below = [depth - level for level in levels_of(path, depth)]
            if self.patience is None:
                found[path] = dataclasses.replace(rule, since=one_or_all(map(self.step_of, below)))
            else:
                stages = one_or_all(max(levels + 1, 0) for levels in below)
                found[path] = dataclasses.replace(rule, stage=stages)
        return found

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        # How many thaws there have been, as data: the program stays the same.
        return {} if self.patience is None else {"thawed": jnp.zeros(())}

    @property
    def watches(self) -> bool:
        return self.patience is not None

    def scored(self, memory: dict[str, Any]) -> None:
        if self.patience and memory["since_best"] and memory["since_best"] % self.patience == 0:
            memory["thawed"] = memory.get("thawed", 0) + 1

    def recalled(self, memory: Mapping[str, Any]) -> dict[str, float]:
        return {} if self.patience is None else {"thawed": float(memory.get("thawed", 0))}

    def step_of(self, below: int) -> int:
        """When that which lies `below` the top block by so many levels begins to learn."""
        return 0 if below < 0 else self.at[min(below, len(self.at) - 1)]


def one_or_all(values: Iterable[int]) -> int | tuple[int, ...]:
    """The one value of a plain parameter, or those of a scanned stack's layers."""
    found = tuple(values)
    return found if len(found) > 1 else found[0]

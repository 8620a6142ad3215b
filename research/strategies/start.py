"""Strategies about the start of training: DecayToInit keeps close to it, ReinitTop leaves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax

from research.adapt import ADDED, TRUNK, Flat, Leaves, Rule, Strategy
from research.errors import ConfigError
from research.strategies.blocks import SCANNED, depth_of, levels_of


@dataclass(frozen=True)
class DecayToInit(Strategy):
    """The trunk decays to where it started instead of to zero: L2-SP (Li et al., 2018).

    Adds strength / 2 * |w - w0|^2 to what is minimized, over the trunk's own parameters that learn,
    which then have no weight decay. Its gradient, as every other, goes through the optimizer; the
    loss that is logged is without it. Cost: a copy of these parameters, also in checkpoints.
    """

    single: ClassVar[bool] = True
    strength: float = 0.01

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        return {
            path: dataclasses.replace(rule, pull=self.strength, decays=False)
            if rule.learns and TRUNK.match(path) and not ADDED.search(path)
            else rule
            for path, rule in rules.items()
        }

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        if self.strength <= 0:
            raise ConfigError(f"adapt: {self}: strength is above 0")
        found = {f"{path}_start": leaves[path] for path, rule in rules.items() if rule.pull}
        if not found:
            raise ConfigError(f"adapt: {self} needs parameters of the trunk that learn")
        return found


@dataclass(frozen=True)
class ReinitTop(Strategy):
    """The top `blocks` blocks and the pooler are drawn anew after loading (Zhang et al., 2021)."""

    single: ClassVar[bool] = True
    blocks: int = 1

    def redrawn(self, leaves: Leaves) -> dict[str, int]:
        depth = depth_of(leaves, self)
        if not 1 <= self.blocks <= depth:
            raise ConfigError(f"adapt: {self}: the trunk has {depth} blocks")
        found = {}
        for path in leaves:
            if path.startswith(SCANNED):
                found[path] = self.blocks
                continue
            inside = depth - self.blocks < levels_of(path, depth)[0] <= depth
            if inside or path.startswith("backbone/pooler/"):
                found[path] = 0
        return found

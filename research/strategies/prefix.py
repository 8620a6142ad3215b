"""Vectors that are learned as if they were text: Prefix in every attention, Prompt at the input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from research.adapt import Flat, Leaves, Rule, Strategy, heads, key_of
from research.errors import ConfigError


@dataclass(frozen=True)
class Prefix(Strategy):
    """`length` keys and values that every token of every example attends to, learned in each
    attention by themselves (Li & Liang, 2021; without their network in between, as Liu et al.,
    2022). A packed row has them once. Cost: `length` more keys a row."""

    length: int = 16

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if "/prefix_" in path}

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        positive(self.length, self)
        found: Flat = {}
        for path, leaf in leaves.items():
            if place := re.fullmatch(r"(backbone/.*)/(key|value)/kernel", path):
                shape = (*leaf.shape[:-2], self.length, leaf.shape[-1])
                name = f"{place[1]}/prefix_{place[2]}"
                found[name] = 0.02 * jax.random.normal(key_of(key, name), shape)
        if not found:
            raise ConfigError(f"adapt: {self} needs a trunk with attention")
        return found


@dataclass(frozen=True)
class Prompt(Strategy):
    """`length` vectors in front of every example's tokens (Lester et al., 2021), drawn from the
    embedding table. They stand before position 0 and have no position embedding of their own, so
    the tokens keep theirs. Cost: `length` more tokens for every place a packed row has."""

    length: int = 16

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if path == "backbone/prompt"}

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        positive(self.length, self)
        table = leaves.get("backbone/embed/table")
        if table is None:
            raise ConfigError(f"adapt: {self} needs a trunk with token vectors")
        rows = jax.random.randint(key, (self.length,), 0, table.shape[0])
        return {"backbone/prompt": table[rows]}


def positive(length: int, strategy: Strategy) -> None:
    """Raises ConfigError for a length below 1."""
    if length < 1:
        raise ConfigError(f"adapt: {strategy}: length is at least 1")

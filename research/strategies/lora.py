"""Low-rank adaptation (LoRA, Hu et al., 2022) and its variants rsLoRA and DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.adapt import TRUNK, Flat, Leaves, Rule, Strategy, heads, key_of, matched
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoRA(Strategy):
    """A product of two thin matrices is added to frozen kernels: W + s A B (Hu et al., 2022).

    s is alpha / rank, or alpha / sqrt(rank) where `stabilized` (rsLoRA, Kalajdzievski, 2023).
    `targets`: regular expressions of which one is found in the path of each adapted kernel.
    `dropout` is that of A's input. With `magnitude` the sum is scaled to columns whose lengths
    learn, their norm being no part of the gradient (DoRA, Liu et al., 2024). Starts as the trunk.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (r"attention/(query|value)/",)
    stabilized: bool = False
    magnitude: bool = False

    def check(self, leaves: Leaves) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(f"adapt: {self}: rank is at least 1, and dropout at least 0, below 1")

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if "/lora_" in path}

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        self.check(leaves)
        kernels = [p for p in leaves if TRUNK.match(p) and p.endswith("/kernel")]
        found: Flat = {}
        for path in matched(self.targets, kernels, "kernel of the trunk"):
            *stack, width, features = leaves[path].shape
            bound, place = width**-0.5, path.removesuffix("kernel")
            found[f"{place}lora_a"] = jax.random.uniform(
                key_of(key, path), (*stack, width, self.rank), minval=-bound, maxval=bound
            )
            found[f"{place}lora_b"] = jnp.zeros((*stack, self.rank, features))
            found[f"{place}lora_scale"] = jnp.full(tuple(stack), self.scale())
            if self.dropout:
                found[f"{place}lora_dropout"] = jnp.full(tuple(stack), self.dropout)
            if self.magnitude:
                found[f"{place}lora_magnitude"] = jnp.linalg.norm(leaves[path], axis=-2)
        return found

    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.stabilized else self.rank)

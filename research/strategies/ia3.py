"""Scaled activations (IA3, Liu et al., 2022): keys, values and the hidden units of each MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.adapt import Flat, Leaves, Rule, Strategy, heads
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class IA3(Strategy):
    """Vectors of ones that scale keys, values and hidden units learn; the trunk does not."""

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if "/ia3_" in path}

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        found: Flat = {}
        for path, leaf in leaves.items():
            shape, place = leaf.shape, path.removesuffix("kernel")
            if re.search(r"^backbone/.*/(key|value)/kernel$", path):
                found[f"{place}ia3_out"] = jnp.ones((*shape[:-2], shape[-1]))
            elif re.search(r"^backbone/.*mlp/down/kernel$", path):
                found[f"{place}ia3_in"] = jnp.ones(shape[:-1])
        if not found:
            raise ConfigError(f"adapt: {self} needs a trunk with keys, values or an MLP")
        return found

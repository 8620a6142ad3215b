"""Bottleneck adapters in Transformer blocks: Houlsby et al., 2019; Pfeiffer et al., 2021."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from research.adapt import Flat, Leaves, Rule, Strategy, heads, key_of
from research.errors import ConfigError

SITES = {"houlsby": ("attention_adapter", "mlp_adapter"), "pfeiffer": ("mlp_adapter",)}


@dataclass(frozen=True, kw_only=True)
class Adapter(Strategy):
    """Two dense layers around the trunk's activation, added to what a branch of a block gives.

    "houlsby" puts them after attention and after the MLP, each before the residual sum (Houlsby et
    al., 2019); "pfeiffer" after the MLP alone (Pfeiffer et al., 2021). `bottleneck` is the width in
    between. The second layer starts at zero, so the trunk starts as it was.
    """

    bottleneck: int = 64
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if "_adapter/" in path}

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        if self.bottleneck < 1:
            raise ConfigError(f"adapt: {self}: bottleneck is at least 1")
        found: Flat = {}
        for path, leaf in leaves.items():
            block = re.fullmatch(r"(backbone/block\w*/)mlp/down/kernel", path)
            for site in SITES[self.placement] if block else ():
                name = f"{block[1]}{site}" if block else ""
                *stack, _, width = leaf.shape
                down = jax.random.normal(key_of(key, name), (*stack, width, self.bottleneck))
                found[f"{name}/down/kernel"] = down * width**-0.5
                found[f"{name}/down/bias"] = jnp.zeros((*stack, self.bottleneck))
                found[f"{name}/up/kernel"] = jnp.zeros((*stack, self.bottleneck, width))
                found[f"{name}/up/bias"] = jnp.zeros((*stack, width))
        if not found:
            raise ConfigError(f"adapt: {self} needs a trunk of Transformer blocks")
        return found

"""Ramps: factors of a term's weight, by the share of the run that is done."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Constant:
    """A factor of 1 from the first step on."""

    def __call__(self, progress: jax.Array) -> jax.Array:
        return jnp.ones_like(progress)


@dataclass(frozen=True)
class Warm:
    """A factor that rises in a line to 1 over the first `share` of the run."""

    share: float = 0.1

    def __call__(self, progress: jax.Array) -> jax.Array:
        return jnp.minimum(progress / self.share, 1.0)


@dataclass(frozen=True)
class Dann:
    """2 / (1 + exp(-`gamma` p)) - 1 at progress p (Ganin et al., 2016): 0 at first, near 1 soon."""

    gamma: float = 10.0

    def __call__(self, progress: jax.Array) -> jax.Array:
        return 2.0 / (1.0 + jnp.exp(-self.gamma * progress)) - 1.0

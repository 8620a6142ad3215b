"""From one vector a token to one vector an example: first, last or mean of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import ACTIVATIONS, Activation, Dense

Batch = dict[str, jax.Array]
Pool = Literal["first", "last", "mean"]


def pool(x: jax.Array, batch: Batch, how: Pool) -> jax.Array:
    """One vector an example: [B, T, D] -> [B, M, D]. BERT's is the first token (Devlin et al.,
    2019), sentence encoders' the mean (Reimers & Gurevych, 2019), decoders' the last."""
    return {"first": pool_first, "last": pool_last, "mean": pool_mean}[how](x, batch)


def pool_first(x: jax.Array, batch: Batch) -> jax.Array:
    """The vector of each example's first token: [B, T, D] -> [B, M, D]."""
    return jnp.take_along_axis(x, batch["starts"][..., None], axis=1)


def pool_last(x: jax.Array, batch: Batch) -> jax.Array:
    """The vector of each example's last token: [B, T, D] -> [B, M, D]."""
    last = batch["starts"] + jnp.maximum(batch["lengths"], 1) - 1
    return jnp.take_along_axis(x, last[..., None], axis=1)


def pool_mean(x: jax.Array, batch: Batch) -> jax.Array:
    """The mean vector of each example's tokens: [B, T, D] -> [B, M, D]; 0 at empty places."""
    slots = jnp.arange(1, batch["ids"].shape[1] + 1, dtype=jnp.int32)
    member = (batch["segments"][:, None, :] == slots[None, :, None]).astype(x.dtype)  # [B, M, T]
    total = jnp.einsum("bmt,btd->bmd", member, x, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(batch["lengths"], 1)[..., None]).astype(x.dtype)


class Pooler(Dense):
    """A dense layer, an activation and, in some trunks, a norm: [..., D] -> [..., D]."""

    activation: Literal["tanh"] | Activation = "tanh"
    make_norm: Callable[[str], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        y = super().__call__(x, noise)
        y = jnp.tanh(y) if self.activation == "tanh" else ACTIVATIONS[self.activation](y)
        return y if self.make_norm is None else self.make_norm("norm")(y)

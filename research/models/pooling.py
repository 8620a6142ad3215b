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


class Trunk(nn.Module):
    """Tokens to vectors: called with a batch [B, T, D], `noise` uint32 [B, T] being for dropout."""

    def at(self, batch: Batch, places: jax.Array, *, noise: jax.Array | None = None) -> jax.Array:
        """The vectors of the tokens at `places` int32 [B, P] alone: [B, P, D]."""
        return at(self(batch, noise=noise), places)


def at(x: jax.Array, places: jax.Array) -> jax.Array:
    """What x [B, T, ...] holds at the places int32 [B, P] of each row: [B, P, ...]."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def ends(batch: Batch, how: Literal["first", "last"]) -> jax.Array:
    """Where the first or the last token of each example is in its row: int32 [B, M]."""
    starts = batch["starts"]
    return starts if how == "first" else starts + jnp.maximum(batch["lengths"], 1) - 1


def pool(x: jax.Array, batch: Batch, how: Pool) -> jax.Array:
    """One vector an example: [B, T, D] -> [B, M, D]. BERT's is the first token (Devlin et al.,
    2019), sentence encoders' the mean (Reimers & Gurevych, 2019), decoders' the last."""
    return pool_mean(x, batch) if how == "mean" else at(x, ends(batch, how))


def pooled(trunk: Trunk, batch: Batch, how: Pool, noise: jax.Array | None) -> jax.Array:
    """The same of the vectors that a trunk makes of a batch, those that count alone."""
    if how == "mean":
        return pool_mean(trunk(batch, noise=noise), batch)
    return trunk.at(batch, ends(batch, how), noise=noise)


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
    def __call__(
        self, x: jax.Array, noise: jax.Array | None = None, copies: jax.Array | None = None
    ) -> jax.Array:
        y = super().__call__(x, noise, copies)
        y = jnp.tanh(y) if self.activation == "tanh" else ACTIVATIONS[self.activation](y)
        return y if self.make_norm is None else self.make_norm("norm")(y)

"""Attention by content, distance and type, of one stream or of two (Dai et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers, products
from research.models.by_products import Drop, drop_pairs
from research.models.layers import Dense


class Stream(NamedTuple):
    """Vectors [B, Q, D] and the noise of their dropout, uint32 [B, Q] or None."""

    x: jax.Array
    noise: jax.Array | None

    def drop(self, y: jax.Array, rate: float, site: int) -> jax.Array:
        """Dropout of `y`, [B, Q, ...], at one of several sites."""
        return layers.dropout(
            y, rate, None if self.noise is None else self.noise ^ jnp.uint32(site)
        )


class View(NamedTuple):
    """How the tokens of a stream stand to all keys, [B, Q, S] each: whether they see them, which
    row of `Context.sinusoids` is their distance, and whether both are of one type."""

    seen: jax.Array
    rows: jax.Array
    alike: jax.Array


class Context(NamedTuple):
    """What all blocks share: the view of either stream, the keys' positions int32 [B, S], and the
    sinusoids of all distances [N, D]."""

    content: View
    query: View | None
    keys: jax.Array
    sinusoids: jax.Array


def sinusoids(distances: jax.Array, width: int) -> jax.Array:
    """[N] -> [N, D]: sines of ever lower frequencies, then their cosines (Vaswani et al., 2017)."""
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RelativeAttention(nn.Module):
    """Attention of both streams to the content, by the same parameters.

    Scores are (q + u) k + (q + v) W_r sinusoids(distance) + (q + w) e, where e is one of two
    vectors, for tokens of one type and of different ones. `memory` [B, M, D] are keys before those
    of the row. Gives [B, T, D], and [B, P, D] where there is a query stream.
    """

    heads: int
    dropout: float
    dtype: products.Dtype = "auto"

    @nn.compact
    def __call__(
        self, content: Stream, query: Stream | None, memory: jax.Array | None, context: Context
    ) -> tuple[jax.Array, jax.Array | None]:
        width = content.x.shape[-1]
        shape = (self.heads, width // self.heads)

        def heads(name: str) -> Callable[[jax.Array], jax.Array]:
            dense = Dense(width, bias=False, dtype=self.dtype, name=name)
            return lambda x: dense(x).reshape(*x.shape[:-1], *shape)

        ask, out = heads("query"), Dense(width, bias=False, dtype=self.dtype, name="out")
        known = content.x
        if memory is not None:
            known = jnp.concatenate([memory.astype(known.dtype), known], axis=1)
        key, value = heads("key")(known), heads("value")(known)
        relative = heads("relative")(context.sinusoids)
        zeros = nn.initializers.zeros
        biases = [self.param(f"{side}_bias", zeros, shape) for side in ("content", "place", "type")]
        unit = nn.initializers.truncated_normal(shape[1] ** -0.5)
        kinds = self.param("kinds", unit, (2, *shape)).astype(key.dtype)

        def attend(stream: Stream, view: View) -> jax.Array:
            asked = ask(stream.x)
            sides = [asked + bias[None, None].astype(asked.dtype) for bias in biases]
            scores = score(sides, key, relative, kinds, view) * shape[1] ** -0.5
            y = mean_of_seen(scores, value, view.seen, self.dropout, stream.noise, context.keys)
            return out(y.reshape(*y.shape[:-2], width))

        told = attend(content, context.content)
        if query is None or context.query is None:
            return told, None
        return told, attend(query, context.query)


def score(
    sides: list[jax.Array], key: jax.Array, relative: jax.Array, kinds: jax.Array, view: View
) -> jax.Array:
    """Three queries [B, Q, H, K], for content, distance and type -> float32 [B, H, Q, S].

    key [B, S, H, K]; relative [N, H, K], one row a distance; kinds [2, H, K].
    """
    content, place, kind = (
        jnp.einsum(f"bqhk,{axes}->bhq{axes[-3]}", side, other, preferred_element_type=jnp.float32)
        for side, axes, other in zip(sides, ("bshk", "nhk", "zhk"), (key, relative, kinds))
    )
    # `place` is of every distance there is: each pair of tokens takes that of its own.
    place = jnp.take_along_axis(place, view.rows[:, None], axis=3, mode="promise_in_bounds")
    return content + place + jnp.where(view.alike[:, None], kind[..., :1], kind[..., 1:])


def mean_of_seen(
    scores: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    rate: float,
    noise: jax.Array | None,
    keys: jax.Array,
) -> jax.Array:
    """The mean of values [B, S, H, K] by the softmax of scores [B, H, Q, S] over what is seen, 0
    where nothing is: [B, Q, H, K]. `noise` [B, Q] and `keys` [B, S] drop pairs of tokens."""
    seen = seen[:, None]
    probabilities = jax.nn.softmax(jnp.where(seen, scores, jnp.float32(-1e30)), axis=-1)
    # What sees nothing would otherwise see everything, alike.
    probabilities = jnp.where(jnp.any(seen, axis=-1, keepdims=True), probabilities, 0.0)
    drop = None if noise is None else Drop(noise, keys)
    probabilities = drop_pairs(probabilities, rate, drop)
    out = jnp.einsum(
        "bhqs,bshk->bqhk",
        probabilities.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return out.astype(value.dtype)

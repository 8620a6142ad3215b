"""Attention by plain matrix products: the reference that honours everything, in any precision.

The backward pass is written out. It takes up the probabilities and the result, which a derivative
taken automatically does not use, and on a CPU runs up to twice as fast. What many pairs of tokens
would take too much memory for, `tiles.py` does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from research.models.layers import mix, scramble

UNSEEN = np.float32(-1e30)


class Drop(NamedTuple):
    """Dropout of pairs of tokens: `noise` uint32 [B, T] of the queries, `positions` int32 [B, S] of
    the keys in their examples. So a pair meets the same mask in any layout."""

    noise: jax.Array
    positions: jax.Array


def drop_pairs(probabilities: jax.Array, rate: float, drop: Drop | None) -> jax.Array:
    """Zeroes shares [B, heads ..., T, S] of attention with probability `rate`, scaling the rest."""
    if drop is None or rate == 0.0:
        return probabilities
    heads = probabilities.shape[1:-2]
    numbers = jnp.arange(math.prod(heads), dtype=jnp.uint32).reshape(1, *heads)
    keep = kept(rate, drop, numbers)
    return jnp.where(keep, probabilities * (1.0 / (1.0 - rate)), 0.0)


def kept(rate: float, drop: Drop, heads: jax.Array) -> jax.Array:
    """bool [B, heads ..., T, S], true with probability 1 - `rate`; the heads' numbers are uint32
    [B or 1, heads ...]."""
    # An element is told apart by query (noise), head and the key's position in its example.
    between = tuple(range(1, heads.ndim))
    noise = jnp.expand_dims(drop.noise, between)
    query = mix(noise + heads[..., None] * jnp.uint32(0x85EBCA77))
    key = drop.positions.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    pair = query[..., None] + jnp.expand_dims(key, (*between, heads.ndim))
    return scramble(pair) >= jnp.uint32(round(rate * 2**32))


def by_products(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rate: float = 0.0,
    drop: Drop | None = None,
) -> jax.Array:
    """Means of values by the softmax, in float32, of scaled scores; those not seen are at -1e30.

    query [B, T, H, K]; key, value [B, S, G, K], H a multiple of G; mask bool [B, T, S]. Returns
    [B, T, H, K] in the dtype of `value`.
    """
    found = by_group(lambda *heads: weigh(*heads, mask, drop, rate), query, key, value)
    return found.astype(value.dtype)


def by_group(
    weigh: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
) -> jax.Array:
    """`weigh` of queries [B, G, ..., T, K] and keys and values [B, G, S, K], whose heads stand
    third in what is given and returned."""
    rows, tokens, heads, width = query.shape
    groups = key.shape[2]
    # Where each head has keys of its own, an axis less: XLA's products are faster so.
    split = (groups,) if groups == heads else (groups, heads // groups)
    asked = jnp.moveaxis(query.reshape(rows, tokens, *split, width), 1, -2)
    found = weigh(asked, jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2))
    return jnp.moveaxis(found, -2, 1).reshape(rows, tokens, heads, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def weigh(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    drop: Drop | None,
    rate: float,
) -> jax.Array:
    """query [B, G, ..., T, K]; key, value [B, G, S, K]; mask [B, T, S] -> like query, in
    float32."""
    return forward(query, key, value, mask, drop, rate)[0]


def product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    drop: Drop | None,
    rate: float,
) -> tuple[jax.Array, Any]:
    scores = product("bg...tk,bgsk->bg...ts", query, key) * query.shape[-1] ** -0.5
    seen = beside_heads(mask, scores)
    shares = jax.nn.softmax(jnp.where(seen, scores, UNSEEN), axis=-1)
    dropped = drop_pairs(shares, rate, drop)
    found = product("bg...ts,bgsk->bg...tk", dropped.astype(value.dtype), value)
    found = checkpoint_name(found, "attention")
    return found, (query, key, value, seen, shares, dropped, found)


def backward(rate: float, saved: Any, slope: jax.Array) -> tuple[Any, ...]:
    query, key, value, seen, shares, dropped, found = saved
    low = slope.astype(value.dtype)
    by_value = product("bg...ts,bg...tk->bgsk", dropped.astype(value.dtype), low)
    by_kept = product("bg...tk,bgsk->bg...ts", low, value)
    # The mean of a row's slopes by its shares is that of the result with its slope.
    mean = jnp.sum(slope * found, axis=-1, keepdims=True)
    by_scores = jnp.where(seen, dropped * by_kept - shares * mean, 0.0) * query.shape[-1] ** -0.5
    by_scores = by_scores.astype(value.dtype)
    by_query = product("bg...ts,bgsk->bg...tk", by_scores, key)
    by_key = product("bg...ts,bg...tk->bgsk", by_scores, query)
    whole = (by_query.astype(query.dtype), by_key.astype(key.dtype), by_value.astype(value.dtype))
    return *whole, None, None


weigh.defvjp(forward, backward)


def beside_heads(mask: jax.Array, scores: jax.Array) -> jax.Array:
    """The mask [B, T, S] of scores [B, heads ..., T, S], to be broadcast against them."""
    return jnp.expand_dims(mask, tuple(range(1, scores.ndim - 2)))

"""Attention by matrix products that keeps nothing for pairs of tokens (Dao et al., 2022).

The backward pass computes the shares again, from the logarithm of their sum, and with keys before
queries, so that all products but one are of matrices as they lie. On a CPU the scores of long rows
are taken a tile at a time, which its caches hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research import sharding
from research.models.by_products import UNSEEN, Drop, beside_heads, by_group, kept, product

# The scores of a tile, which a core's cache holds.
TILE = 2**20
# Fewer scores in all, or those of shorter rows, a CPU keeps at less cost than it has in tiles.
MANY, LONG = 2**22, 128


class Pairs(NamedTuple):
    """What is the same for all heads of a row: whether a query sees a key, bool [B, T, S]."""

    mask: jax.Array
    drop: Drop | None


def pays(query: jax.Array, key: jax.Array) -> bool:
    """Whether this is to be taken rather than `by_products`, which keeps what is to be known of
    every pair: everywhere but on a CPU, where it is faster up to some number of pairs."""
    rows, tokens, heads, _ = query.shape
    return sharding.platform() != "cpu" or (
        tokens >= LONG and rows * heads * tokens * key.shape[1] > MANY
    )


def by_tiles(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rate: float = 0.0,
    drop: Drop | None = None,
) -> jax.Array:
    """What `by_products` is, [B, T, H, K], in float32; but a query that sees nothing passes no
    gradient on."""
    pairs = Pairs(mask, drop if rate > 0.0 else None)
    return by_group(lambda *heads: weigh(*heads, pairs, rate), query, key, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weigh(
    query: jax.Array, key: jax.Array, value: jax.Array, pairs: Pairs, rate: float
) -> jax.Array:
    """query [B, G, ..., T, K]; key, value [B, G, S, K] -> like query, in float32."""
    return forward(query, key, value, pairs, rate)[0]


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, pairs: Pairs, rate: float
) -> tuple[jax.Array, Any]:
    of_heads = (query, key, value, numbers_of(query))
    found, total = in_tiles(functools.partial(means, rate), of_heads, pairs)
    # Named for `remat`, which then has nothing of this to compute again.
    found, total = (checkpoint_name(x, "attention") for x in (found, total))
    return found, (of_heads, pairs, found, total)


def backward(rate: float, saved: Any, slope: jax.Array) -> tuple[Any, ...]:
    of_heads, pairs, found, total = saved
    # The mean of a row's slopes by its shares is that of the result with its slope.
    mean = jnp.sum(slope * found, axis=-1)
    given = (*of_heads, total, slope.astype(of_heads[2].dtype), mean)
    turned_pairs = pairs._replace(mask=turned(pairs.mask))
    slopes = in_tiles(functools.partial(slopes_of, rate), given, turned_pairs)
    return *(by.astype(x.dtype) for by, x in zip(slopes, of_heads)), None


weigh.defvjp(forward, backward)


def means(
    rate: float,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    numbers: jax.Array,
    pairs: Pairs,
) -> tuple[jax.Array, jax.Array]:
    """The means [B, G, ..., T, K], and logarithms [B, G, ..., T] of the sums behind the shares."""
    scores = product("bg...tk,bgsk->bg...ts", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(beside_heads(pairs.mask, scores), scores, UNSEEN)
    most = jnp.max(scores, axis=-1, keepdims=True)
    powers = jnp.exp(scores - most)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    scale = 1.0 / total
    if pairs.drop is not None:
        powers = jnp.where(kept(rate, pairs.drop, numbers), powers, 0.0)
        scale = scale * (1.0 / (1.0 - rate))
    found = product("bg...ts,bgsk->bg...tk", powers.astype(value.dtype), value) * scale
    return found, (most + jnp.log(total))[..., 0]


def slopes_of(
    rate: float,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    numbers: jax.Array,
    total: jax.Array,
    slope: jax.Array,
    mean: jax.Array,
    pairs: Pairs,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by query, key and value, where `slope` is that by the result; its `mean`, and
    `total`, are [B, G, ..., T]. The mask is [B, S, T]."""
    scale = query.shape[-1] ** -0.5
    scores = product("bgsk,bg...tk->bg...st", key, query) * scale
    seen = beside_heads(pairs.mask, scores)
    shares = jnp.where(seen, jnp.exp(jnp.where(seen, scores, UNSEEN) - total[..., None, :]), 0.0)
    dropped = shares
    if pairs.drop is not None:
        keep = jnp.swapaxes(kept(rate, pairs.drop, numbers), -1, -2)
        dropped = jnp.where(keep, shares * (1.0 / (1.0 - rate)), 0.0)
    by_value = product("bg...st,bg...tk->bgsk", dropped.astype(value.dtype), slope)
    by_kept = product("bgsk,bg...tk->bg...st", value, slope)
    by_scores = (dropped * by_kept - shares * mean[..., None, :]) * scale
    by_scores = by_scores.astype(value.dtype)
    by_key = product("bg...st,bg...tk->bgsk", by_scores, query)
    return product("bg...ts,bgsk->bg...tk", turned(by_scores), key), by_key, by_value


def turned(x: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., N, M], in memory too: a product would widen to float32 what it turns."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def numbers_of(query: jax.Array) -> jax.Array:
    """uint32 [B, G, ...]: the number of every head."""
    shape = query.shape[1:-2]
    numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return jnp.broadcast_to(numbers, (query.shape[0], *shape))


def in_tiles(
    function: Callable[..., tuple[jax.Array, ...]], of_heads: tuple[jax.Array, ...], pairs: Pairs
) -> tuple[jax.Array, ...]:
    """`function(*of_heads, pairs)`, of all rows and groups at once or of a tile after another.

    of_heads: [B, G, ...] each, queries and keys first; so is what is returned.
    """
    query, key = of_heads[:2]
    rows, groups, *asked = query.shape[:-1]
    row_tile, group_tile = tile(rows, groups, math.prod(asked) * key.shape[2])
    if (row_tile, group_tile) == (rows, groups):
        return function(*of_heads, pairs)
    splits = groups // group_tile

    # One of both is whole, or one is 1: the cells of a tile lie together.
    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(-1, row_tile, group_tile, *x.shape[2:])

    of_rows = jax.tree.map(lambda x: x.reshape(-1, row_tile, *x.shape[1:]), pairs)

    def one(turn: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
        number, cells = turn
        return function(*cells, jax.tree.map(lambda x: x[number // splits], of_rows))

    turns = jnp.arange(rows // row_tile * splits), tuple(cut(x) for x in of_heads)
    return tuple(x.reshape(rows, groups, *x.shape[3:]) for x in jax.lax.map(one, turns))


def tile(rows: int, groups: int, scores: int) -> tuple[int, int]:
    """How many rows, and groups of a row, are taken at once, where a group has so many scores.

    All on an accelerator, and on several devices, which a loop would have wait for each other.
    """
    if sharding.platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
        return rows, groups
    if groups * scores > TILE:
        return 1, largest(groups, TILE // scores)
    return largest(rows, TILE // (groups * scores)), groups


def largest(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most`; at least 1."""
    return max(part for part in range(1, max(most, 1) + 1) if whole % part == 0)

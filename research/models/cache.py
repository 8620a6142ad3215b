"""Keys and values of tokens already seen, as a pure value that a decoder takes and gives back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from research.models import products


class Past(NamedTuple):
    """One block's keys and values, [B, S, G, K] each, the first `filled` (int32 []) of S written.

    G are the key and value heads, fewer than the query heads that share them.
    """

    keys: jax.Array
    values: jax.Array
    filled: jax.Array

    def extended(self, keys: jax.Array, values: jax.Array) -> Past:
        """With those of T more tokens, [B, T, G, K] each."""
        return Past(
            write(self.keys, keys, self.filled),
            write(self.values, values, self.filled),
            self.filled + keys.shape[1],
        )


class Cache(NamedTuple):
    """What a decoder keeps of the tokens it has seen: S slots a row, the same written in all rows.

    `blocks`: a Past for every block, or one with a leading axis L where the stack is scanned.
    `positions`, `segments` int32 [B, S] as in a batch; an empty slot's segment is 0, as padding's.
    """

    blocks: Any
    positions: jax.Array
    segments: jax.Array

    def beside(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Positions and segments [B, S] with those of a batch [B, T] written behind them."""
        first = self.blocks if isinstance(self.blocks, Past) else self.blocks[0]
        filled = jnp.ravel(first.filled)[0]
        return {
            name: write(getattr(self, name), batch[name], filled)
            for name in ("positions", "segments")
        }

    def rows(self, index: jax.Array) -> Cache:
        """The rows that `index`, int32 [R], names, in its order and as often."""
        axis = 1 if isinstance(self.blocks, Past) else 0

        def of(past: Past) -> Past:
            keys, values = (jnp.take(x, index, axis=axis) for x in past[:2])
            return Past(keys, values, past.filled)

        blocks = of(self.blocks) if axis else tuple(of(past) for past in self.blocks)
        return Cache(blocks, self.positions[index], self.segments[index])


def write(slots: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """`slots` [B, S, ...] with `new` [B, T, ...] from slot `start` on."""
    return lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, axis=1)


def empty(spec: Any, rows: int, size: int) -> Cache:
    """A cache of `size` slots for `rows` rows of a trunk with this Spec; nothing is written yet."""
    width = spec.head_width or spec.width // spec.heads
    stacked = (spec.depth,) if spec.scan else ()
    shape = (*stacked, rows, size, spec.kv_heads or spec.heads, width)
    dtype = products.compute_dtype(spec.dtype)

    def past() -> Past:
        return Past(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(stacked, jnp.int32))

    blocks = past() if spec.scan else tuple(past() for _ in range(spec.depth))
    return Cache(blocks, jnp.zeros((rows, size), jnp.int32), jnp.zeros((rows, size), jnp.int32))

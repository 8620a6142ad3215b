"""Where activations lie: rows over data x fsdp, the tokens of long rows over `sequence`.

All of a step but attention is token by token, and needs nothing of its neighbours; attention
gathers keys and values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import sharding
from research.errors import ConfigError


def sequence_shards(tokens: int = 0) -> int:
    """Over how many shards of the mesh in force rows of `tokens` are spread: 1 without a mesh, or
    where they do not divide."""
    parts = int(jax.sharding.get_abstract_mesh().shape.get("sequence", 1))
    return parts if tokens % parts == 0 else 1


def refuse_sequence(trunk: str) -> None:
    """Raises ConfigError where rows are spread, for a trunk that needs them whole."""
    if sequence_shards() > 1:
        raise ConfigError(f"mesh.sequence is {sequence_shards()}, but {trunk} needs whole rows")


def constrain_tokens(x: jax.Array) -> jax.Array:
    """Keeps [B, T, ...] spread over the rows' axes and `sequence`, and whole otherwise."""
    if sequence_shards(x.shape[1]) == 1:
        return sharding.constrain_rows(x)
    rows = sharding.ROWS if sharding.batch_shards(x.shape[0]) > 1 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, "sequence"))


def gather_tokens(x: jax.Array) -> jax.Array:
    """[B, T, G, K] spread over `sequence` on every one of its devices: what attention gathers."""
    if sequence_shards(x.shape[1]) == 1:
        return x
    rows = sharding.ROWS if sharding.batch_shards(x.shape[0]) > 1 else None
    free = PartitionSpec.UNCONSTRAINED
    # Said twice, or the compiler may gather what keys are computed from, which is wider.
    x = jax.lax.with_sharding_constraint(x, PartitionSpec(rows, "sequence", free))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, None, free))


def fold(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [G, B T / G, ...]: what each of G shards of a batch holds, side by side."""
    (rows, tokens), rest = x.shape[:2], x.shape[2:]
    shards, parts = sharding.batch_shards(rows), sequence_shards(tokens)
    if parts > 1:
        x = jnp.moveaxis(x.reshape(shards, rows // shards, parts, tokens // parts, *rest), 2, 1)
    return constrain_shards(x.reshape(shards * parts, -1, *rest))


def unfold(x: jax.Array, rows: int, tokens: int) -> jax.Array:
    """What `fold` did, undone: [G, B T / G, ...] -> [B, T, ...]."""
    shards, parts = sharding.batch_shards(rows), sequence_shards(tokens)
    if parts > 1:
        x = x.reshape(shards, parts, rows // shards, tokens // parts, *x.shape[2:])
        return constrain_tokens(jnp.moveaxis(x, 1, 2).reshape(rows, tokens, *x.shape[4:]))
    return x.reshape(rows, tokens, *x.shape[2:])


def constrain_shards(x: jax.Array) -> jax.Array:
    """Keeps axis 0 of what `fold` gave one shard a device, and the rest whole."""
    parts, shards = sequence_shards(), sharding.batch_shards(x.shape[0])
    if parts == 1 or x.shape[0] % (parts * shards):
        return sharding.constrain_rows(x)
    rows = sharding.ROWS if shards > 1 else ()
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*rows, "sequence")))


def copies(x: jax.Array) -> jax.Array | None:
    """x [B, T, D] once for each shard of `tensor`, [S, B, T, D]; None where there is one shard.

    Products that read their own shard's copy have gradients that are added up on the shard, so that
    shards meet once however many products there are (`f` of Shoeybi et al., 2019).
    """
    shards = int(jax.sharding.get_abstract_mesh().shape.get("tensor", 1))
    if shards == 1:
        return None
    rows = sharding.ROWS if sharding.batch_shards(x.shape[0]) > 1 else None
    tokens = "sequence" if sequence_shards(x.shape[1]) > 1 else None
    many = jnp.broadcast_to(x[None], (shards, *x.shape))
    return jax.lax.with_sharding_constraint(many, PartitionSpec("tensor", rows, tokens))

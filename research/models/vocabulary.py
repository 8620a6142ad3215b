"""Labels scored against a whole vocabulary tile by tile, so that [N, V] is never in memory.

The scores of a tile of rows are made, read and dropped; the backward pass makes them again (the
idea is that of Wijmans et al., 2025). Costs one matrix product in four more than keeping them,
which is done where one tile is all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research import activations
from research.models import layers
from research.models.products import over_last, plain, transposed

# Rows of a tile on each shard of the batch. Every tile reads and writes a gradient of the table's
# size, which fewer rows would not pay for; so many against 128k words are half a gigabyte.
ROWS = 1024


class Scored(NamedTuple):
    """What is read off the scores of a row, float32 each.

    `nll`: -log p(label) in nats. `log_z`: the log of the softmax's denominator; its square times a
    small number is PaLM's z-loss (Chowdhery et al., 2022). `correct`: 1 where no word scores
    higher than the label, without a gradient.
    """

    nll: jax.Array
    log_z: jax.Array
    correct: jax.Array


def score(
    x: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    *,
    rows: int = ROWS,
) -> Scored:
    """Softmax over the words of `table` for every vector: arrays of the shape of `labels`.

    x [B, ..., D] in the dtype that products are computed in; table float32 [V, D]; bias [V];
    labels int [B, ...]. Axes 0 and 1 may be spread over the mesh, V over `tensor`. Up to `rows`
    vectors a shard are scored at once, and these scores are kept for the backward pass
    where they are all.
    """
    table = gather_width(table)
    shape = (len(labels), labels.size // len(labels))
    flat = activations.fold(x.reshape(*shape, x.shape[-1]))
    names = activations.fold(labels.reshape(shape))
    tiled = scan_tiles(cut(flat, rows), table, bias, cut(names, rows))
    found = (join(values, flat.shape[1]) for values in tiled)
    return Scored(*(activations.unfold(x, *shape).reshape(labels.shape) for x in found))


def sample(
    x: jax.Array,
    table: jax.Array,
    noise: jax.Array,
    bias: jax.Array | None = None,
    *,
    rows: int = ROWS,
) -> jax.Array:
    """A word for every vector, drawn from the softmax by Gumbel's trick: int32, shape of `noise`.

    `noise` uint32 [B, ...] is all that chance depends on; nothing is differentiated. The other
    arguments are those of `score`.
    """
    x, table, bias = lax.stop_gradient((x, gather_width(table).astype(x.dtype), bias))
    shape = (len(noise), noise.size // len(noise))
    flat = activations.fold(x.reshape(*shape, x.shape[-1]))
    seeds = activations.fold(noise.reshape(shape))

    def draw(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores = logits(tile[0], table, bias)
        return jnp.argmax(scores + gumbel(tile[1], scores.shape[-1]), axis=-1).astype(jnp.int32)

    drawn = lax.map(draw, (cut(flat, rows), cut(seeds, rows)))
    return activations.unfold(join(drawn, flat.shape[1]), *shape).reshape(noise.shape)


def gumbel(noise: jax.Array, words: int) -> jax.Array:
    """Standard Gumbel variables, float32 [..., words], a function of `noise` uint32 [...]."""
    lanes = jnp.arange(words, dtype=jnp.uint32).reshape((1,) * noise.ndim + (-1,))
    bits = layers.mix(noise[..., None] + lanes * jnp.uint32(0x9E3779B9))
    # The middle of one of 2^24 equal intervals: neither 0 nor 1 can be drawn.
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-24)
    return -jnp.log(-jnp.log(uniform))


def place(table: jax.Array, width: str | None) -> jax.Array:
    """A table [V, D] (or its gradient) with its words over `tensor` and its width over an axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return table
    words = "tensor" if table.shape[0] % mesh.shape["tensor"] == 0 else None
    whole = width is None or table.shape[1] % mesh.shape[width] > 0
    return lax.with_sharding_constraint(table, PartitionSpec(words, None if whole else width))


@jax.custom_vjp
def gather_width(table: jax.Array) -> jax.Array:
    """The table whole along its width: gathered once here rather than once a tile. Its gradient is
    spread over `fsdp` as it is added up: a constraint's own gradient would be whole everywhere."""
    return place(table, None)


gather_width.defvjp(
    lambda table: (gather_width(table), None), lambda _, slope: (place(slope, "fsdp"),)
)


def logits(x: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[G, S, D] by [V, D] of one dtype -> float32 [G, S, V]."""
    scores = jnp.einsum("gsd,vd->gsv", x, table, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + over_last(bias, scores)


def read(scores: jax.Array, labels: jax.Array) -> Scored:
    """float32 [G, S, V], int [G, S] -> [G, S] each."""
    log_z = jax.nn.logsumexp(scores, axis=-1)
    if spread():
        own = jnp.sum(jnp.where(is_label(scores, labels), scores, 0.0), axis=-1)
    else:
        own = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    correct = (own >= jnp.max(scores, axis=-1)).astype(jnp.float32)
    return Scored(log_z - own, log_z, correct)


def spread() -> bool:
    """Whether several devices are at work: labels are found by masks then, a pass over V, because
    looking them up would send vectors and scores from device to device."""
    return bool(jax.sharding.get_abstract_mesh().size > 1)


def is_label(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Where each row's label is, bool [G, S, V]."""
    return over_last(jnp.arange(scores.shape[-1]), scores) == labels[..., None]


def cut(x: jax.Array, rows: int) -> jax.Array:
    """[G, S, ...] -> [tiles, G, up to `rows`, ...]: as few equal tiles as there can be, the last
    one filled up with zeros."""
    size = x.shape[1]
    tiles = -(-size // rows)
    rows = -(-size // tiles)
    x = jnp.pad(x, ((0, 0), (0, tiles * rows - size)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], tiles, rows, *x.shape[2:]), 1, 0)


def join(tiles: jax.Array, size: int) -> jax.Array:
    """What `cut` did, undone: [tiles, G, rows, ...] -> [G, size, ...]."""
    x = jnp.moveaxis(tiles, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :size]


@jax.custom_vjp
def scan_tiles(x: jax.Array, table: jax.Array, bias: jax.Array | None, labels: jax.Array) -> Scored:
    """`read` of every tile: x [tiles, G, S, D], labels [tiles, G, S] -> [tiles, G, S] each."""
    return scan_forward(x, table, bias, labels)[0]


def scan_forward(
    x: jax.Array, table: jax.Array, bias: jax.Array | None, labels: jax.Array
) -> tuple[Scored, Any]:
    """`scan_tiles` and what its backward pass needs: of the size of V the table alone, and the
    scores of a tile that is the only one."""
    words = table.astype(x.dtype)

    def step(_: None, tile: tuple[jax.Array, jax.Array]) -> tuple[None, Any]:
        scores = logits(activations.constrain_shards(tile[0]), words, bias)
        return None, (read(scores, tile[1]), scores if len(x) == 1 else None)

    found, scores = lax.scan(step, None, (x, labels))[1]
    return found, (x, table, bias, labels, found.log_z, scores)


def scan_backward(saved: Any, slopes: Scored) -> tuple[Any, ...]:
    """Gradients by x, table and bias.

    Each shard of the batch sums the table's gradient for itself: shards meet once, after the scan.
    """
    x, table, bias, labels, log_z, scores = saved
    words = table.astype(x.dtype)

    def slope_of(tile: Any) -> jax.Array:
        x, labels, log_z, by_nll, by_log_z, scores = tile
        if scores is None:
            scores = logits(activations.constrain_shards(x), words, bias)
        slope = jnp.exp(scores - log_z[..., None]) * (by_nll + by_log_z)[..., None]
        if spread():
            slope = slope - jnp.where(is_label(scores, labels), by_nll[..., None], 0.0)
        return slope

    def add(sums: Any, tile: Any) -> tuple[Any, jax.Array]:
        slope = slope_of(tile)
        cast = slope.astype(x.dtype)
        more = plain(transposed(cast), tile[0]), jnp.sum(slope, axis=1)
        return (sums[0] + more[0], sums[1] + more[1]), plain(cast, words)

    tiles = (x, labels, log_z, slopes.nll, slopes.log_z, scores)
    if scores is None:
        groups = x.shape[1]
        zeros = jnp.zeros((groups, *table.shape), jnp.float32), jnp.zeros((groups, len(table)))
        sums, by_x = lax.scan(add, zeros, tiles)
        by_table, by_bias = (jnp.sum(part, axis=0) for part in sums)
    else:
        slope = slope_of(jax.tree.map(lambda part: part[0], tiles))
        cast = slope.astype(x.dtype)
        rows = cast.reshape(-1, len(table)), x.reshape(-1, x.shape[-1])
        by_table, by_bias = plain(transposed(rows[0]), rows[1]), jnp.sum(slope, axis=(0, 1))
        by_x = plain(cast, words)[None]
    if not spread():
        less = -slopes.nll[..., None]
        by_x += less * words[labels].astype(jnp.float32)
        by_table = by_table.at[labels].add(less * x.astype(jnp.float32))
        by_bias = by_bias.at[labels].add(-slopes.nll)
    by_words = place(by_table.astype(table.dtype), "fsdp")
    return by_x.astype(x.dtype), by_words, None if bias is None else by_bias, None


scan_tiles.defvjp(scan_forward, scan_backward)

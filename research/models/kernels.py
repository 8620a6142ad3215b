"""Attention kernels that others wrote, each called so that no token sees another example's.

Scores are never whole in memory (Dao et al., 2022). What has been run: splash in Pallas' interpret
mode, forward and backward, against the reference; the arguments of cuDNN's call through JAX's own
implementation of the same function. cuDNN itself, splash on a TPU and tokamax are tested where
there is such a device, and have not been seen by us on one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import sharding
from research.errors import ConfigError

# Splash works on blocks of keys this long, or shorter ones that divide the row; lanes of a TPU.
BLOCKS, LANES = (512, 256, 128), 128


def on_shards(
    kernel: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array, rest: Any
) -> jax.Array:
    """`kernel(query, key, value, rest)` of each device's rows and heads: kernels cannot be
    partitioned by the compiler. query [B, T, H, K]; key, value [B, S, G, K]; rest [B, ...]."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, rest)
    rows = sharding.ROWS if sharding.batch_shards(query.shape[0]) > 1 else None
    divides = key.shape[2] % mesh.shape["tensor"] == 0
    heads = PartitionSpec(rows, None, "tensor" if divides else None)
    specs = (heads, heads, heads, PartitionSpec(rows))
    mapped = jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)
    found: jax.Array = mapped(query, key, value, rest)
    return found


def cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    window: int | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention: [B, T, H, K] of rows [B, T] that are one example from cell 0 on.

    It is told lengths: a boolean mask would become a dense bias, and cost its gradient.
    """

    def one(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        # An empty row attends to a cell of padding, rather than to nothing.
        lengths = jnp.maximum(jnp.sum(segments > 0, axis=1, dtype=jnp.int32), 1)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            local_window_size=None if window is None else (window, 0),
            implementation=implementation,
        )

    return on_shards(one, query, key, value, segments)


def tokamax(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *, causal: bool
) -> jax.Array:
    """tokamax's Mosaic kernels: [B, T, H, K], by a mask bool [B, T, S], which they read in blocks.

    `causal` says that the mask shows no later cell, so that blocks above the diagonal are spared.
    Raises ConfigError for what they do not support.
    """
    library: Any = importlib.import_module("tokamax")

    def one(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        found: jax.Array = library.dot_product_attention(
            query, key, value, mask=mask[:, None], is_causal=causal, implementation="mosaic"
        )
        return found

    try:
        return on_shards(one, query, key, value, mask)
    except NotImplementedError as error:
        raise ConfigError(
            f"task.backbone.spec.attention is 'tokamax', which says: {error}"
        ) from None


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention for TPUs: [B, T, H, K] of packed rows, by their segments [B, T].

    Order and window are those of cells, which within an example are those of positions. Rows are
    filled up to a multiple of 128 cells by padding.
    """
    # Imported where it is used: Pallas takes a second to load.
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    tokens = query.shape[1]
    more = -tokens % LANES
    size = tokens + more
    block = next(block for block in BLOCKS if size % block == 0)
    names = [f"block_{axis}{of}" for axis in ("q", "kv") for of in ("", "_dq", "_dkv")]
    blocks: Any = dict.fromkeys(names, block)
    mask = splash_mask(size, causal, window)

    def one(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        kernel: Any = library.make_splash_mha(
            library.MultiHeadMask([mask] * query.shape[2]),
            block_sizes=library.BlockSizes(**blocks),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        # It does not scale the scores, and takes heads before tokens.
        scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (scaled, key, value))

        def row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            found: jax.Array = kernel(q, k, v, library.SegmentIds(ids, ids))
            return found

        found = jax.vmap(row)(query, key, value, segments)
        return jnp.swapaxes(found, 1, 2)

    filled = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (query, key, value)]
    query, key, value = filled
    found = on_shards(one, query, key, value, jnp.pad(segments, ((0, 0), (0, more))))
    return found[:, :tokens].astype(value.dtype)


def splash_mask(size: int, causal: bool, window: int | None) -> Any:
    """Splash's mask of all pairs of `size` cells that order and window leave."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    if window is not None:
        return library.LocalMask((size, size), (window, 0 if causal else window), 0)
    return library.CausalMask((size, size)) if causal else library.FullMask((size, size))

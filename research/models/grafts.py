"""What strategies put beside a layer's own parameters, and what the layer computes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.products import Dtype, multiply, over_last

Batch = dict[str, jax.Array]


def leaf(module: nn.Module, name: str) -> Any:
    """An added parameter of a module, or the dict of those of a module within."""
    return module.get_variable("params", name)


def scaled(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """[..., D] times the vector `name` [D], where the module has one (IA3)."""
    if not module.has_variable("params", name):
        return x
    return x * over_last(leaf(module, name), x).astype(x.dtype)


def seen(module: nn.Module, indices: jax.Array, found: jax.Array) -> jax.Array:
    """Vectors [..., D] found in a table, those of the rows that learn taken from these instead:
    `seen_rows` [U, D] of the ascending `seen_words` [U]."""
    if not module.has_variable("params", "seen_rows"):
        return found
    words, rows = leaf(module, "seen_words"), leaf(module, "seen_rows")
    places = jnp.minimum(jnp.searchsorted(words, indices), len(words) - 1)
    learns = (words[places] == indices)[..., None]
    return jnp.where(learns, jnp.take(rows, places, axis=0), found)


def product(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
    """x W as layers multiply, but what is added, and is thin, never in eight bits."""
    return multiply(x, kernel, "bfloat16" if dtype == "float8" else dtype)


def low_rank(
    module: nn.Module, x: jax.Array, y: jax.Array, kernel: jax.Array, dtype: Dtype
) -> jax.Array:
    """y = x W [..., F] with s (x A) B added (LoRA), and then with columns scaled to the lengths
    `lora_magnitude` (DoRA); x [..., D] may be less what dropout took."""
    a, b = leaf(module, "lora_a"), leaf(module, "lora_b")
    scale = leaf(module, "lora_scale")
    y = y + scale.astype(y.dtype) * product(product(x, a, dtype), b, dtype)
    if not module.has_variable("params", "lora_magnitude"):
        return y
    norm = jnp.linalg.norm(kernel + scale * (a @ b), axis=0)
    lengths = leaf(module, "lora_magnitude") / jax.lax.stop_gradient(norm)
    return y * over_last(lengths, y).astype(y.dtype)


def bottleneck(
    module: nn.Module,
    name: str,
    y: jax.Array,
    activate: Callable[[jax.Array], jax.Array],
    dtype: Dtype,
) -> jax.Array:
    """y [..., D] with what the module's adapter `name` makes of it added, where it has one."""
    if not module.has_variable("params", name):
        return y
    down, up = (leaf(module, name)[part] for part in ("down", "up"))

    def dense(x: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
        z = product(x, layer["kernel"], dtype)
        return z + over_last(layer["bias"], z).astype(z.dtype)

    hidden = activate(dense(y, down).astype(jnp.float32)).astype(y.dtype)
    return y + dense(hidden, up)


def prefixed(
    module: nn.Module, key: jax.Array, value: jax.Array, mask: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys and values [B, P + S, G, K], mask [B, T, P + S] and names of keys [B, P + S] of an
    attention with P keys of its own, in which every token sees them."""
    rows, tokens = mask.shape[:2]
    length = leaf(module, "prefix_key").shape[0]

    def extend(name: str, x: jax.Array) -> jax.Array:
        vectors = leaf(module, name).astype(x.dtype)
        shape = (rows, length, *x.shape[2:])
        return jnp.concatenate([jnp.broadcast_to(vectors.reshape(shape[1:]), shape), x], axis=1)

    names = jnp.broadcast_to(-1 - jnp.arange(length, dtype=positions.dtype), (rows, length))
    seen = jnp.ones((rows, tokens, length), bool)
    return (
        extend("prefix_key", key),
        extend("prefix_value", value),
        jnp.concatenate([seen, mask], axis=2),
        jnp.concatenate([names, positions], axis=1),
    )


def prompted(
    module: nn.Module, x: jax.Array, batch: Batch, noise: jax.Array | None
) -> tuple[jax.Array, Batch, jax.Array | None]:
    """Embeddings [B, T + M P, D], batch and noise with P vectors for each of a row's M places.

    They lie behind the row, but belong to their example's segment, before its position 0. Their
    noise is a function of their example and place, as that of tokens is.
    """
    prompt = leaf(module, "prompt").astype(x.dtype)  # [P, D]
    rows, places = batch["starts"].shape
    length = prompt.shape[0]
    vectors = jnp.broadcast_to(prompt[None, None], (rows, places, *prompt.shape))
    order = jnp.arange(length, dtype=jnp.int32)
    segment = jnp.where(batch["lengths"] > 0, 1 + jnp.arange(places, dtype=jnp.int32)[None], 0)
    segments = jnp.repeat(segment, length, axis=1)
    positions = jnp.broadcast_to(jnp.tile(order - length, places), segments.shape)
    if noise is not None:
        first = jnp.take_along_axis(noise, batch["starts"], axis=1)
        own = first[..., None] + (order.astype(jnp.uint32)[None, None] + 1) * jnp.uint32(0x85EBCA77)
        noise = jnp.concatenate([noise, own.reshape(rows, -1)], axis=1)
    longer = {
        "segments": jnp.concatenate([batch["segments"], segments], axis=1),
        "positions": jnp.concatenate([batch["positions"], positions], axis=1),
    }
    if "prefix" in batch:
        longer["prefix"] = jnp.pad(batch["prefix"], ((0, 0), (0, places * length)))
    x = jnp.concatenate([x, vectors.reshape(rows, -1, prompt.shape[1])], axis=1)
    return x, batch | longer, noise

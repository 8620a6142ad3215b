"""The few layers every trunk is made of: dense, norms, dropout and attention.

Parameters are float32; `dtype` is what matrix products and activations are computed in. Softmax and
norms are computed in float32 whatever `dtype` is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from research import sharding
from research.models import grafts
from research.models.products import product

Dtype = Literal["auto", "float32", "bfloat16"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Norm = Literal["layer", "rms"]
# factor, low and high frequency factor, positions of the original training.
RopeScaling = tuple[float, float, float, int]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # By erf, as PyTorch does: jax.nn.gelu's erfc is exact far out, and twice as slow on a CPU.
    "gelu": lambda x: 0.5 * x * (1.0 + lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# Heads start as BERT's. Kernels inside a trunk keep the variance of their input, and tables hold
# vectors of unit length: 0.02, meant for a width of 768, leaves narrow trunks all but linear and
# their tied logits all but flat, so that masked LM stays at unigrams for very long.
small_normal = nn.initializers.truncated_normal(0.02)
keep_variance = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def compute_dtype(dtype: Dtype) -> jnp.dtype:
    """What matrix products run in: "auto" is bfloat16 on accelerators and float32 on a CPU, where
    XLA's bfloat16 backward pass is slower than float32."""
    if dtype == "auto":
        dtype = "float32" if sharding.platform() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def mix(x: jax.Array) -> jax.Array:
    """A bijective hash of uint32 in which every input bit reaches every output bit.

    Two rounds of multiply and xor-shift with the constants found by C. Wellons' search
    (https://github.com/skeeto/hash-prospector). Fuses into its consumer, unlike threefry.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def scramble(x: jax.Array) -> jax.Array:
    """The part of `mix` that the upper bits need, for hashes that are only compared to a bound."""
    x = x * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def token_noise(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """One random uint32 a token, [B, T], a function of (key, example, position) alone.

    So a token meets the same dropout and the same masking wherever packing puts it, on any mesh.
    """
    seed = jax.random.bits(key, dtype=jnp.uint32)
    slots = jnp.maximum(batch["segments"] - 1, 0)
    examples = jnp.take_along_axis(batch["ids"], slots, axis=1).astype(jnp.uint32)
    return mix(mix(examples ^ seed) + batch["positions"].astype(jnp.uint32))


def over_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector along the last axis of `x`, with the rank of `x`: [D] -> [1, ..., 1, D]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def dropout(x: jax.Array, rate: float | jax.Array, noise: jax.Array | None) -> jax.Array:
    """Zeroes elements of `x` with probability `rate` and scales the rest (Srivastava et al., 2014).

    `noise` is uint32 and broadcasts against all but the last axis of `x`, whose index tells its
    elements apart; None switches dropout off.
    """
    if noise is None or (isinstance(rate, float) and rate == 0.0):
        return x
    lanes = over_last(jnp.arange(x.shape[-1], dtype=jnp.uint32), x)
    bits = scramble(noise[..., None] + lanes * jnp.uint32(0x9E3779B9))
    bound = round(rate * 2**32) if isinstance(rate, float) else rate * 2.0**32
    kept = x * jnp.asarray(1.0 / (1.0 - rate), x.dtype)
    return jnp.where(bits >= jnp.asarray(bound, jnp.uint32), kept, jnp.zeros((), x.dtype))


class Dense(nn.Module):
    """y = x W + b, over the last axis: [..., D] -> [..., features].

    `noise` drops the input of a low-rank term that has a dropout (see strategies/lora.py). Layers
    with one input may be given its `copies` (see `sharding.copies`), [S, ..., D].
    """

    features: int
    bias: bool = True
    dtype: Dtype = "auto"
    kernel_init: nn.initializers.Initializer = keep_variance

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array | None = None, copies: jax.Array | None = None
    ) -> jax.Array:
        dtype = compute_dtype(self.dtype)
        if self.has_variable("params", "ia3_in"):
            x, copies = grafts.scaled(self, "ia3_in", x), None
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x, kernel, copies, dtype)
        if self.has_variable("params", "lora_a"):
            y = grafts.low_rank(self, self.dropped(x, noise), y, kernel)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + over_last(bias, y).astype(dtype)
        return grafts.scaled(self, "ia3_out", y)

    def dropped(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The input of the low-rank term; layers that share `noise` are told apart by name."""
        if noise is None or not self.has_variable("params", "lora_dropout"):
            return x
        site = jnp.uint32(zlib.crc32(str(self.name).encode()))
        return dropout(x, self.get_variable("params", "lora_dropout"), noise ^ site)


class LayerNorm(nn.Module):
    """Subtracts the mean and divides by the standard deviation (Ba et al., 2016), in float32."""

    epsilon: float = 1e-12
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        y = y * over_last(self.param("scale", nn.initializers.ones, (width,)), y)
        if self.bias:
            y = y + over_last(self.param("bias", nn.initializers.zeros, (width,)), y)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square (Zhang & Sennrich, 2019), in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return (y * over_last(scale, y)).astype(x.dtype)


class Embedding(nn.Module):
    """A table of vectors: int [...] -> [..., features]; `attend` scores against all of them."""

    rows: int
    features: int
    dtype: Dtype = "auto"

    def setup(self) -> None:
        unit = nn.initializers.truncated_normal(self.features**-0.5)
        self.table = self.param("table", unit, (self.rows, self.features))

    def __call__(self, indices: jax.Array) -> jax.Array:
        found = jnp.take(self.table, indices, axis=0).astype(compute_dtype(self.dtype))
        return sharding.constrain_width(found)

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., rows]: the inner product with every row of the table."""
        dtype = compute_dtype(self.dtype)
        return jnp.einsum(
            "...d,vd->...v",
            x.astype(dtype),
            self.table.astype(dtype),
            preferred_element_type=jnp.float32,
        )


def slowed(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1's rotary frequencies for texts longer than it was trained on (Llama Team, 2024).

    Waves longer than `original / low` are slowed by `factor`, those shorter than `original / high`
    are left alone, and those between are interpolated.
    """
    factor, low, high, original = scaling
    turns = original * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)


def rotate(
    x: jax.Array, positions: jax.Array, theta: float | jax.Array, scaling: RopeScaling | None = None
) -> jax.Array:
    """Rotary positions (Su et al., 2021), halves paired as in Llama: [B, T, H, K] -> same."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequencies = slowed(frequencies, scaling)
    angles = positions.astype(jnp.float32)[..., None, None] * over_last(frequencies, x)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attention_mask(
    batch: dict[str, jax.Array], *, causal: bool, keys: dict[str, jax.Array] | None = None
) -> jax.Array:
    """bool [B, T, S], query by key: the same example, and for `causal` not a later position.

    `keys` has positions and segments [B, S]; None is `batch`. Tokens that a `prefix` among the
    keys, int [B, S], marks are seen by their whole example, by earlier tokens too (prefix LM; Dong
    et al., 2019; Raffel et al., 2020).
    """
    keys = batch if keys is None else keys
    segments = keys["segments"][:, None, :]
    mask = (batch["segments"][:, :, None] == segments) & (segments > 0)
    if causal:
        seen = batch["positions"][:, :, None] >= keys["positions"][:, None, :]
        if "prefix" in keys:
            seen |= (keys["prefix"] > 0)[:, None, :]
        mask &= seen
    return mask


def within(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """bool [B, T, S]: positions [B, T] and [B, S] are at most `window` apart."""
    return jnp.abs(queries[:, :, None] - keys[:, None, :]) <= window


def choose(condition: Any, a: Any, b: Any) -> Any:
    """`a` or `b`, also by a condition that is traced."""
    if isinstance(condition, bool):
        return a if condition else b
    return jnp.where(condition, a, b)


def drop_pairs(
    probabilities: jax.Array, rate: float, noise: jax.Array | None, positions: jax.Array
) -> jax.Array:
    """Dropout of attention, [B, G, H / G, T, S], by the queries' `noise` [B, T] and the keys'
    `positions` [B, S]: a pair of tokens meets the same mask in any layout. None drops nothing."""
    if noise is None or rate == 0.0:
        return probabilities
    # An element is told apart by query (noise), head and the key's position in its example.
    groups, each = probabilities.shape[1:3]
    head = jnp.arange(groups * each, dtype=jnp.uint32).reshape(groups, each)
    query_head = mix(noise[:, None, None, :] + head[None, ..., None] * jnp.uint32(0x85EBCA77))
    pair = query_head[..., None] + positions[:, None, None, None, :].astype(
        jnp.uint32
    ) * jnp.uint32(0x9E3779B9)
    keep = scramble(pair) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, probabilities * (1.0 / (1.0 - rate)), 0.0)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    rate: float,
    noise: jax.Array | None,
    positions: jax.Array,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) with grouped key and value heads.

    query [B, T, H, K]; key, value [B, S, G, K], H a multiple of G; mask bool [B, T, S].
    Softmax in float32. `noise` [B, T] drops probabilities at `rate`; `positions` [B, S] names the
    keys, so that a pair of tokens meets the same mask in any layout. Returns [B, T, H, K].
    """
    rows, tokens, heads, width = query.shape
    groups = key.shape[2]
    query = query.reshape(rows, tokens, groups, heads // groups, width)
    scores = jnp.einsum("btghk,bsgk->bghts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * width**-0.5, jnp.float32(-1e30))
    probabilities = jax.nn.softmax(scores, axis=-1)
    probabilities = drop_pairs(probabilities, rate, noise, positions)
    out = jnp.einsum(
        "bghts,bsgk->btghk",
        probabilities.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(rows, tokens, heads, width).astype(value.dtype)

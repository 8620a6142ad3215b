"""The few layers every trunk is made of: dense, norms and dropout.

Parameters are float32; `dtype` is what matrix products are computed in (see products.py). Softmax
and norms are computed in float32 whatever `dtype` is.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from research import sharding
from research.errors import ConfigError
from research.models import grafts
from research.models.products import Dtype, compute_dtype, multiply, over_last

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

# Heads start as those of transformers. Kernels inside a trunk keep the variance of their input, and
# tables hold vectors of unit length: 0.02, meant for a width of 768, leaves narrow trunks all but
# linear and their tied logits all but flat, so that masked LM stays at unigrams for very long.
small_normal = nn.initializers.normal(0.02)
keep_variance = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


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


def product(x: jax.Array, kernel: jax.Array, copies: jax.Array | None, dtype: Dtype) -> jax.Array:
    """x W, summed in float32: [..., D] by [D, F] -> [..., F]; from the `copies` of x, [S, ..., D],
    where S divides F, as the kernel's axes do then."""
    if copies is None or kernel.shape[1] % copies.shape[0]:
        return multiply(x, kernel, dtype)
    own = compute_dtype(dtype)
    split = kernel.reshape(kernel.shape[0], copies.shape[0], -1).astype(own)
    y = jnp.einsum(
        "s...d,dsf->...sf", copies.astype(own), split, preferred_element_type=jnp.float32
    )
    return y.reshape(*x.shape[:-1], kernel.shape[1]).astype(own)


class Dense(nn.Module):
    """y = x W + b, over the last axis: [..., D] -> [..., features].

    `noise` drops the input of a low-rank term that has a dropout (see strategies/lora.py). Layers
    with one input may be given its `copies` (see `activations.copies`), [S, ..., D].
    """

    features: int
    bias: bool = True
    dtype: Dtype = "auto"
    kernel_init: nn.initializers.Initializer = keep_variance

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array | None = None, copies: jax.Array | None = None
    ) -> jax.Array:
        if self.has_variable("params", "ia3_in"):
            x, copies = grafts.scaled(self, "ia3_in", x), None
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x, kernel, copies, self.dtype)
        if self.has_variable("params", "lora_a"):
            y = grafts.low_rank(self, self.dropped(x, noise), y, kernel, self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + over_last(bias, y).astype(y.dtype)
        return grafts.scaled(self, "ia3_out", y)

    def dropped(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The input of the low-rank term; layers that share `noise` are told apart by name."""
        if noise is None or not self.has_variable("params", "lora_dropout"):
            return x
        site = jnp.uint32(zlib.crc32(str(self.name).encode()))
        return dropout(x, self.get_variable("params", "lora_dropout"), noise ^ site)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardize(x: jax.Array, epsilon: float, centred: bool) -> jax.Array:
    """x over its root mean square along the last axis, `centred` from its mean first: float32.

    Its gradient takes two means a vector; those of a derivative taken step by step are twice that.
    """
    return standardize_forward(x, epsilon, centred)[0]


def standardize_forward(x: jax.Array, epsilon: float, centred: bool) -> tuple[jax.Array, Any]:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True) if centred else y
    factor = lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    # Of x itself only the dtype is needed.
    return y * factor, (y * factor, factor, jnp.zeros((), x.dtype))


def standardize_backward(
    epsilon: float, centred: bool, saved: Any, slope: jax.Array
) -> tuple[jax.Array]:
    y, factor, like = saved
    by_x = slope - y * jnp.mean(slope * y, axis=-1, keepdims=True)
    by_x = by_x - jnp.mean(slope, axis=-1, keepdims=True) if centred else by_x
    return ((by_x * factor).astype(like.dtype),)


standardize.defvjp(standardize_forward, standardize_backward)


class LayerNorm(nn.Module):
    """Subtracts the mean and divides by the standard deviation (Ba et al., 2016), in float32."""

    epsilon: float = 1e-12
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = standardize(x, self.epsilon, True)
        y = y * over_last(self.param("scale", nn.initializers.ones, (width,)), y)
        if self.bias:
            y = y + over_last(self.param("bias", nn.initializers.zeros, (width,)), y)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square (Zhang & Sennrich, 2019), in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = standardize(x, self.epsilon, False)
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
        found = grafts.seen(self, indices, jnp.take(self.table, indices, axis=0))
        return sharding.constrain_width(found.astype(compute_dtype(self.dtype)))

    @property
    def whole(self) -> jax.Array:
        """All vectors, [rows, features]. Raises ConfigError where only some of them learn."""
        if self.has_variable("params", "seen_rows"):
            raise ConfigError(
                "adapt: SeenWords is for a table that words are looked up in; here they are also "
                "scored against it, which moves all of its rows"
            )
        return self.table

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., rows]: the inner product with every row of the table."""
        dtype = compute_dtype(self.dtype)
        return jnp.einsum(
            "...d,vd->...v",
            x.astype(dtype),
            self.whole.astype(dtype),
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


def choose(condition: Any, a: Any, b: Any) -> Any:
    """`a` or `b`, also by a condition that is traced."""
    if isinstance(condition, bool):
        return a if condition else b
    return jnp.where(condition, a, b)

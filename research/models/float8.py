"""Matrix products of factors in eight bits, each array with one scale (Micikevicius et al., 2022).

Values and kernels are e4m3, gradients e5m2, which is coarser and reaches further. The scale of an
array is that of its largest number as it is now, so there is no state beside the parameters; sums
are float32. An array is all that a step multiplies, so that an example is rounded a little
differently in other company: packed and padded batches, or micro-batches, differ by that.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
Scaled = tuple[jax.Array, jax.Array]


def scaled(x: jax.Array, dtype: Any) -> Scaled:
    """`x` in eight bits and float32 [], its product with which is x again, but for rounding."""
    limit = float(jnp.finfo(dtype).max)
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    scale = jnp.where(largest > 0, largest / limit, 1.0)
    # Beyond the limit lies no number: a quotient that is rounded up must not get there.
    return jnp.clip(x.astype(jnp.float32) / scale, -limit, limit).astype(dtype), scale


def contract(a: Scaled, b: Scaled, axis_of_a: int, axis_of_b: int) -> jax.Array:
    """The sums of products over an axis of each, in float32."""
    axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
    y = lax.dot_general(a[0], b[0], axes, preferred_element_type=jnp.float32)
    return y * (a[1] * b[1])


@jax.custom_vjp
def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W of factors in eight bits: [..., D] by [D, F] -> float32 [..., F]; so are its gradients.

    What is kept for the backward pass is in eight bits too.
    """
    return forward(x, kernel)[0]


def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    factors = scaled(x, FORWARD), scaled(kernel, FORWARD)
    # Of the factors themselves only the dtypes are needed.
    like = jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype)
    return contract(*factors, x.ndim - 1, 0), (*factors, like)


def backward(saved: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, like = saved
    slopes = scaled(slope, BACKWARD)
    by_x = contract(slopes, kernel, slope.ndim - 1, 1)
    rows = x[0].reshape(-1, x[0].shape[-1]), slopes[0].reshape(-1, slope.shape[-1])
    by_kernel = contract((rows[0], x[1]), (rows[1], slopes[1]), 0, 0)
    return by_x.astype(like[0].dtype), by_kernel.astype(like[1].dtype)


multiply.defvjp(forward, backward)

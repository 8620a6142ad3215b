"""The matrix product of a dense layer, also of one that shares its input with others."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def product(
    x: jax.Array, kernel: jax.Array, copies: jax.Array | None, dtype: jnp.dtype
) -> jax.Array:
    """x W in `dtype`, summed in float32: [..., D] by [D, F] -> [..., F]; from the `copies` of x,
    [S, ..., D], where S divides F, as the kernel's axes do then."""
    kernel = kernel.astype(dtype)
    if copies is None or kernel.shape[1] % copies.shape[0]:
        y = jnp.matmul(x.astype(dtype), kernel, preferred_element_type=jnp.float32)
        return y.astype(dtype)
    split = kernel.reshape(kernel.shape[0], copies.shape[0], -1)
    y = jnp.einsum(
        "s...d,dsf->...sf", copies.astype(dtype), split, preferred_element_type=jnp.float32
    )
    return y.reshape(*x.shape[:-1], kernel.shape[1]).astype(dtype)

"""Matrix products x W in the precision that the processor multiplies fastest in.

On a CPU with bfloat16 of its own, products are in bfloat16 and all between them in float32, which
is several times faster there than gelu, softmax and norms in bfloat16. XLA's fast kernels for it
take both factors as they are written, row by row: transposed factors, which the backward pass
has, it would convert to float32. So these are written out first.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from research import sharding
from research.models import float8

Dtype = Literal["auto", "float32", "bfloat16", "float8"]

# Fewer rows of x do not pay for a copy of W in bfloat16.
ROWS = 32


@functools.cache
def features() -> frozenset[str]:
    """What the processor says it has; nothing where it does not say so as Linux on x86 does."""
    info = Path("/proc/cpuinfo")
    return frozenset(info.read_text().split()) if info.is_file() else frozenset()


def product_dtype(dtype: Dtype) -> jnp.dtype:
    """What matrix products run in: "auto" is bfloat16 on accelerators and on a CPU that multiplies
    in it, else float32; and float32 wherever JAX's `jax_default_matmul_precision` asks for it."""
    if dtype == "auto":
        native = sharding.platform() != "cpu" or features() & {"avx512_bf16", "amx_bf16"}
        asked: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        exact = asked in ("float32", "highest")
        dtype = "bfloat16" if native and not exact else "float32"
    return jnp.dtype(float8.FORWARD if dtype == "float8" else dtype)


def compute_dtype(dtype: Dtype) -> jnp.dtype:
    """What lies between products: float32 on a CPU; on accelerators the dtype of the products, or
    bfloat16 between those in eight bits."""
    return jnp.dtype("float32") if sharding.platform() == "cpu" else factor_dtype(dtype)


def factor_dtype(dtype: Dtype) -> jnp.dtype:
    """What activations are multiplied with each other in: as kernels are, but not in 8 bits."""
    return product_dtype("bfloat16" if dtype == "float8" else dtype)


def multiply(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
    """x W, summed in float32: [..., D] by [D, F] -> [..., F] in `compute_dtype`."""
    low, out = product_dtype(dtype), compute_dtype(dtype)
    if dtype == "float8":
        return float8.multiply(x, kernel).astype(out)
    if low == out:
        return plain(x.astype(low), kernel.astype(low)).astype(out)
    if x.size < ROWS * x.shape[-1]:
        return plain(x.astype(out), kernel.astype(out))
    return rounded(x, kernel)


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


@jax.custom_vjp
def rounded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W of float32 factors rounded to bfloat16, summed in float32; so are its gradients."""
    return forward(x, kernel)[0]


def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    factors = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return plain(*factors), factors


def backward(factors: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    slope = slope.astype(jnp.bfloat16)
    rows = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return plain(slope, transposed(kernel)), plain(transposed(rows[0]), rows[1])


rounded.defvjp(forward, backward)


def over_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector along the last axis of `x`, with the rank of `x`: [D] -> [1, ..., 1, D]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def transposed(x: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., N, M], in memory too; not over several devices, where it would be
    gathered."""
    y = jnp.swapaxes(x, -1, -2)
    if jax.sharding.get_abstract_mesh().size > 1:
        return y
    return with_layout_constraint(y, Layout(major_to_minor=tuple(range(y.ndim))))

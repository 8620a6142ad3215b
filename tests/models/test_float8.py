"""Products in eight bits: equal to their definition, and let in by their losses alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research.models import float8, products
from research.models.products import compute_dtype, multiply, product_dtype

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(KEYS[0], (4, 16, 32)) * 30
KERNEL = jax.random.normal(KEYS[1], (32, 48)) / 50
SLOPE = jax.random.normal(KEYS[2], (4, 16, 48)) * 1e-6


def with_gradients(x, kernel):
    y, back = jax.vjp(lambda x, kernel: multiply(x, kernel, "float8"), x, kernel)
    return y, *back(SLOPE)


def rounded(x, dtype) -> np.ndarray:
    """The nearest numbers of eight bits times the array's scale, [M, N] float64."""
    x = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    scale = np.abs(x).max() / np.float32(ml_dtypes.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float64) * np.float64(scale)


def test_values_and_gradients_are_sums_of_rounded_factors() -> None:
    x, kernel = (rounded(a, ml_dtypes.float8_e4m3fn) for a in (X, KERNEL))
    slope = rounded(SLOPE, ml_dtypes.float8_e5m2)
    wanted = x @ kernel, slope @ kernel.T, x.T @ slope
    for found, want in zip(jax.jit(with_gradients)(X, KERNEL), wanted):
        assert found.dtype == jnp.float32
        size = np.abs(want).max()
        np.testing.assert_allclose(np.reshape(found, want.shape) / size, want / size, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(float8.FORWARD, 3), (float8.BACKWARD, 2)], ids=["e4m3", "e5m2"]
)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rounding_is_relative_at_any_size(dtype, bits, size) -> None:
    x = X * size
    eight, scale = jax.jit(float8.scaled, static_argnums=1)(x, dtype)
    back = np.asarray(eight, np.float64) * float(scale)
    near = np.abs(np.asarray(x)) > np.abs(x).max() / 100
    error = np.abs(back / np.asarray(x, np.float64) - 1)[near]
    assert np.isfinite(back).all() and error.max() <= 2.0 ** -(bits + 1) * (1 + 1e-6)


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() -> None:
    assert not np.asarray(multiply(0 * X, KERNEL, "float8")).any()
    for bad in (jnp.inf, jnp.nan):
        assert not np.isfinite(multiply(X.at[0, 0, 0].set(bad), KERNEL, "float8")).all()


def test_what_lies_between_products_is_wider(monkeypatch) -> None:
    assert product_dtype("float8") == jnp.float8_e4m3fn
    assert compute_dtype("float8") == jnp.float32
    monkeypatch.setattr(products.sharding, "platform", lambda: "gpu")
    assert compute_dtype("float8") == jnp.bfloat16
    assert multiply(X, KERNEL, "float8").dtype == jnp.bfloat16

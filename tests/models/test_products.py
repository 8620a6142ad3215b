"""Products in bfloat16 on a CPU: equal to their definition, and run by the fast kernels."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.models import grafts, products, vocabulary
from research.models.products import compute_dtype, multiply, product_dtype

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(KEYS[0], (4, 16, 32))
KERNEL = jax.random.normal(KEYS[1], (32, 48))
SLOPE = jax.random.normal(KEYS[2], (4, 16, 48))


def with_gradients(x, kernel, dtype="bfloat16"):
    y, back = jax.vjp(lambda x, kernel: multiply(x, kernel, dtype), x, kernel)
    return y, *back(SLOPE)


def scored_with_gradients(x, words):
    """The labels' scores among the 48 columns of `words`, the products as `Transformer.nll` has
    them."""
    labels = jnp.arange(64).reshape(4, 16) % 48

    def score(x, words):
        return vocabulary.score(x.astype(products.factor_dtype("bfloat16")), words.T, labels).nll

    nll, back = jax.vjp(score, x, words)
    return nll, *back(jnp.ones_like(nll))


class Adapted(nn.Module):
    """What an adapter makes of vectors."""

    @nn.compact
    def __call__(self, x):
        return grafts.bottleneck(self, "adapter", x, jnp.tanh, "bfloat16")


def adapted_with_gradients(x, kernel):
    """An adapter whose layers have `kernel` and its transpose, without a bias."""

    def adapted(x, down, up):
        layers = {
            name: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
            for name, kernel in (("down", down), ("up", up))
        }
        return Adapted().apply({"params": {"adapter": layers}}, x)

    y, back = jax.vjp(adapted, x, kernel, kernel.T)
    return y, *back(jnp.ones_like(y))


def rounded(x) -> np.ndarray:
    """The nearest bfloat16, [M, N] float64."""
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64).reshape(-1, x.shape[-1])


def test_values_and_gradients_are_float32_sums_of_rounded_factors() -> None:
    x, kernel, slope = rounded(X), rounded(KERNEL), rounded(SLOPE)
    wanted = x @ kernel, slope @ kernel.T, x.T @ slope
    for found, want in zip(jax.jit(with_gradients)(X, KERNEL), wanted):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(np.reshape(found, want.shape), want, rtol=1e-5, atol=1e-4)


def test_few_vectors_are_multiplied_in_float32() -> None:
    few = X[0, : products.ROWS // 2]
    exact = np.asarray(few, np.float64) @ np.asarray(KERNEL, np.float64)
    np.testing.assert_allclose(multiply(few, KERNEL, "bfloat16"), exact, rtol=1e-5, atol=1e-4)
    many = multiply(X[0].repeat(2, axis=0), KERNEL, "bfloat16")
    assert np.abs(many[::2] - X[0] @ KERNEL).max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_many_kernels_at_once_are_each_alone(dtype) -> None:
    found = jax.jit(functools.partial(with_gradients, dtype=dtype))
    many = jax.jit(jax.vmap(found))(jnp.stack([X, -9 * X]), jnp.stack([KERNEL, 2 * KERNEL]))
    for n, (x, kernel) in enumerate(((X, KERNEL), (-9 * X, 2 * KERNEL))):
        for together, alone in zip(many, found(x, kernel)):
            np.testing.assert_allclose(together[n], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_a_mesh_changes_nothing_and_gathers_no_activations(dtype) -> None:
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), devices=jax.devices()[:4], axis_types=kinds)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    kernels = NamedSharding(mesh, PartitionSpec("fsdp"))
    both = functools.partial(with_gradients, dtype=dtype)
    with jax.set_mesh(mesh):
        given = jax.device_put(X, rows), jax.device_put(KERNEL, kernels)
        program = jax.jit(both, out_shardings=(rows, rows, kernels))
        text = program.lower(*given).compile().as_text()
        spread = program(*given)
    gathered = re.findall(r"\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered and all(sorted(shape.split(",")) == ["32", "48"] for shape in gathered)
    for found, alone in zip(spread, jax.jit(both)(X, KERNEL)):
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(
    not products.features() & {"avx512_bf16", "amx_bf16"}, reason="no bfloat16 in this processor"
)
@pytest.mark.parametrize(
    ("program", "count"),
    [(with_gradients, 3), (scored_with_gradients, 3), (adapted_with_gradients, 6)],
)
def test_no_product_is_fed_by_a_conversion_to_float32(program, count) -> None:
    text = jax.jit(program).lower(X, KERNEL).compile().as_text()
    kinds = dict(re.findall(r"(%\S+) = (\w+)\[", text))
    factors = re.findall(r" dot\((%[\w.]+), (%[\w.]+)\)", text)
    assert len(factors) == count
    assert all(kinds[name] == "bf16" for pair in factors for name in pair), text


def test_auto_follows_the_processor_and_what_jax_is_asked_for(monkeypatch) -> None:
    def auto(has, precision=None):
        monkeypatch.setattr(products, "features", lambda: frozenset(has))
        with jax.default_matmul_precision(precision):
            return product_dtype("auto")

    assert auto({"avx2"}) == auto({"amx_bf16"}, "highest") == auto({"amx_bf16"}, "float32")
    assert auto({"avx2"}) == jnp.float32
    assert auto({"avx2", "amx_bf16"}) == auto({"avx512_bf16"}) == jnp.bfloat16
    assert product_dtype("bfloat16") == jnp.bfloat16
    assert compute_dtype("bfloat16") == compute_dtype("auto") == jnp.float32

"""Norms: values and the written gradients are those of their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.layers import LayerNorm, RMSNorm

KEYS = jax.random.split(jax.random.key(0), 4)
X = 3 + 2 * jax.random.normal(KEYS[0], (3, 5, 16))
SLOPE = jax.random.normal(KEYS[1], X.shape)
SCALE, BIAS = (1 + 0.3 * jax.random.normal(key, (16,)) for key in KEYS[2:])


def layer(x, scale, bias):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-3) * scale + bias


def rms(x, scale):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-3) * scale


@pytest.mark.parametrize(
    ("norm", "definition", "names"),
    [
        (LayerNorm(epsilon=1e-3), layer, ("scale", "bias")),
        (LayerNorm(epsilon=1e-3, bias=False), lambda x, s: layer(x, s, 0.0), ("scale",)),
        (RMSNorm(epsilon=1e-3), rms, ("scale",)),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(norm, definition, names) -> None:
    given = (SCALE, BIAS)[: len(names)]
    with jax.numpy_rank_promotion("allow"):
        wanted, back = jax.vjp(definition, X, *given)
        slopes = back(SLOPE)
    params = dict(zip(names, given))
    found, ours = jax.vjp(lambda x, params: norm.apply({"params": params}, x), X, params)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    by_x, by_params = ours(SLOPE)
    for one, other in zip((by_x, *(by_params[name] for name in names)), slopes):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_halves_are_normed_in_float32_and_come_back_as_halves() -> None:
    norm, params = RMSNorm(), {"params": {"scale": SCALE}}
    low = X.astype(jnp.bfloat16)
    found, back = jax.vjp(lambda x: norm.apply(params, x), low)
    whole = norm.apply(params, low.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16 and back(found)[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, whole.astype(jnp.bfloat16))

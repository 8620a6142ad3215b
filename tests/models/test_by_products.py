"""Attention by products: values and the written gradients are those of its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.models.by_products import Drop, by_products, drop_pairs

B, T, S, G, K = 3, 7, 9, 2, 4
KEYS = jax.random.split(jax.random.key(0), 6)
MASK = jax.random.bernoulli(KEYS[3], 0.6, (B, T, S)).at[1, 2].set(False)
DROP = Drop(
    jax.random.bits(KEYS[4], (B, T)), jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
)


def given(heads: int) -> tuple[jax.Array, ...]:
    shapes = (B, T, heads, K), (B, S, G, K), (B, S, G, K)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(KEYS, shapes))


def defined(query, key, value, rate, drop):
    """Head by head, with the derivative that JAX takes."""
    heads = query.shape[2]
    own = [
        (query[:, :, h], key[:, :, h * G // heads], value[:, :, h * G // heads])
        for h in range(heads)
    ]
    shares = jnp.stack(
        [
            jax.nn.softmax(
                jnp.where(MASK, jnp.einsum("btk,bsk->bts", q, k) / K**0.5, -1e30), axis=-1
            )
            for q, k, _ in own
        ],
        axis=1,
    )
    kept = drop_pairs(shares, rate, drop)
    return jnp.stack(
        [jnp.einsum("bts,bsk->btk", kept[:, h], own[h][2]) for h in range(heads)], axis=2
    )


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("heads", [G, 3 * G])
def test_values_and_gradients_are_those_of_the_definition(
    heads: int, rate: float, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that sees nothing included; on accelerators what was dropped is drawn again."""
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    drop = DROP if rate else None
    arrays = given(heads)
    slope = jax.random.normal(KEYS[5], arrays[0].shape)
    wanted, back = jax.vjp(lambda *a: defined(*a, rate, drop), *arrays)
    found, ours = jax.vjp(lambda *a: by_products(*a, MASK, rate, drop), *arrays)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for one, other in zip(ours(slope), back(slope)):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    ones = jnp.ones((B, 2, 4, T, S))
    drop = DROP._replace(noise=jax.random.bits(KEYS[5], (B, T)))
    many = np.stack(
        [drop_pairs(ones, 0.25, drop._replace(noise=drop.noise + jnp.uint32(n))) for n in range(50)]
    )
    assert set(np.unique(many)) == {0.0, np.float32(1 / 0.75)}
    assert abs(many.mean() - 1) < 0.02

"""Attention by products: values and the written gradients are those of its definition."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research import sharding
from research.models import tiles
from research.models.by_products import Drop, by_products, drop_pairs
from research.models.tiles import by_tiles, largest, pays, tile

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


def check(function, heads: int, rate: float, seen: jax.Array) -> None:
    """Values, and the gradients where the slope of what is not `seen` is nought."""
    drop = DROP if rate else None
    arrays = given(heads)
    slope = jax.random.normal(KEYS[5], arrays[0].shape)
    wanted, back = jax.vjp(lambda *a: defined(*a, rate, drop), *arrays)
    found, ours = jax.vjp(lambda *a: function(*a, MASK, rate, drop), *arrays)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for one, other in zip(ours(slope), back(jnp.where(seen, slope, 0.0))):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("heads", [G, 3 * G])
def test_values_and_gradients_are_those_of_the_definition(heads: int, rate: float) -> None:
    """A query that sees nothing included."""
    check(by_products, heads, rate, jnp.array(True))


@pytest.mark.parametrize("scores", [0, 3 * T * S, 6 * T * S, 12 * T * S, 18 * T * S])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("heads", [G, 3 * G])
def test_so_are_those_of_tiles(heads: int, rate: float, scores: int, monkeypatch) -> None:
    """Of one head, of a row, of all; but a query that sees nothing passes no gradient on."""
    monkeypatch.setattr(tiles, "TILE", scores)
    check(by_tiles, heads, rate, MASK.any(axis=-1)[..., None, None])


@pytest.mark.parametrize("function", [by_products, by_tiles])
def test_shards_of_rows_and_heads_need_nothing_of_each_other(function) -> None:
    mesh = sharding.MeshSpec(data=4, tensor=2).build()
    rows, heads = PartitionSpec(sharding.ROWS), PartitionSpec(sharding.ROWS, None, "tensor")
    arrays = tuple(jax.random.normal(key, (8, 32, 2 * G, K)) for key in KEYS[:4])
    mask = jax.random.bernoulli(KEYS[4], 0.6, (8, 32, 32)).at[:, :, 0].set(True)
    positions = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32), (8, 32))
    drop = Drop(jax.random.bits(KEYS[5], (8, 32)), positions)

    def run(query, key, value, slope, mask, drop):
        found, back = jax.vjp(lambda *a: function(*a, mask, 0.3, drop), query, key, value)
        return found, *back(slope)

    wanted = jax.jit(run)(*arrays, mask, drop)
    with jax.set_mesh(mesh):
        shards = jax.device_put(arrays, NamedSharding(mesh, heads))
        others = jax.device_put((mask, drop), NamedSharding(mesh, rows))
        compiled = jax.jit(run).lower(*shards, *others).compile()
        found = compiled(*shards, *others)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not re.search("all-gather|all-reduce|all-to-all", compiled.as_text())


@pytest.mark.parametrize("function", [by_products, by_tiles])
def test_gradients_of_gradients_are_those_of_the_definition(function) -> None:
    def size(attention):
        def loss(*arrays):
            return jnp.sum(
                jnp.where(MASK.any(axis=-1)[..., None, None], attention(*arrays), 0) ** 2
            )

        def slopes(*arrays):
            return sum(jnp.sum(by**2) for by in jax.grad(loss, argnums=(0, 1, 2))(*arrays))

        return jax.grad(slopes, argnums=(0, 1, 2))(*given(G))

    wanted = size(lambda *arrays: defined(*arrays, 0.0, None))
    for one, other in zip(size(lambda *arrays: function(*arrays, MASK)), wanted):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_many_at_once_are_each_alone(monkeypatch) -> None:
    """Replicates, whose rows a tile then has of all of them."""
    monkeypatch.setattr(tiles, "TILE", 3 * T * S)
    many = tuple(jnp.stack([x, 2.0 * x]) for x in given(G))

    def run(*arrays):
        found, back = jax.vjp(lambda *a: by_tiles(*a, MASK, 0.3, DROP), *arrays)
        return found, *back(found)

    for n in range(2):
        for together, alone in zip(jax.vmap(run)(*many), run(*(x[n] for x in many))):
            np.testing.assert_allclose(together[n], alone, rtol=1e-5, atol=1e-5)


def test_a_tile_holds_what_a_cache_does_and_divides_the_rows(monkeypatch) -> None:
    assert tile(24, 12, 128 * 128) == (4, 12)
    assert tile(7, 12, 128 * 128) == (1, 12)
    assert tile(4, 12, 512 * 512) == (1, 4)
    assert tile(4, 12, 2048 * 2048) == (1, 1)
    assert [largest(12, most) for most in (0, 1, 5, 11, 12, 99)] == [1, 1, 4, 6, 12, 12]
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert tile(24, 12, 128 * 128) == (24, 12)


def test_tiles_are_for_many_pairs_on_a_cpu_and_for_all_elsewhere(monkeypatch) -> None:
    def pay(rows: int, tokens: int) -> bool:
        heads = jnp.zeros((rows, tokens, 12, 1))
        return pays(heads, heads)

    assert [pay(*shape) for shape in ((6, 80), (16, 384), (99, 127), (32, 128))] == [0, 1, 0, 1]
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert pay(6, 80)


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    ones = jnp.ones((B, 2, 4, T, S))
    drop = DROP._replace(noise=jax.random.bits(KEYS[5], (B, T)))
    many = np.stack(
        [drop_pairs(ones, 0.25, drop._replace(noise=drop.noise + jnp.uint32(n))) for n in range(50)]
    )
    assert set(np.unique(many)) == {0.0, np.float32(1 / 0.75)}
    assert abs(many.mean() - 1) < 0.02

"""Scores by tiles: those of the whole, in value and gradient, in less memory, on any mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import losses
from research.models import vocabulary
from research.sharding import MeshSpec

B, T, D, V = 8, 13, 8, 48
RNG = np.random.default_rng(0)
X, TABLE, BIAS = (RNG.normal(size=s).astype(np.float32) for s in ((B, T, D), (V, D), (V,)))
LABELS = RNG.integers(0, V, (B, T)).astype(np.int32)
WEIGHTS = RNG.random((B, T)).astype(np.float32)


def plainly(x: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    """By losses.cross_entropy of all scores at once."""
    scores = jnp.einsum("btd,vd->btv", x, table) + bias[None, None]
    nll = losses.cross_entropy(scores, LABELS)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    correct = (jnp.argmax(scores, axis=-1) == LABELS).astype(jnp.float32)
    return jnp.sum(WEIGHTS * (nll + 0.01 * log_z**2)), (nll, log_z, correct)


def by_tiles(rows: int) -> Any:
    def total(x: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
        found = vocabulary.score(x, table, LABELS, bias, rows=rows)
        return jnp.sum(WEIGHTS * (found.nll + 0.01 * found.log_z**2)), tuple(found)

    return total


def slopes(function: Any) -> Any:
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(X, TABLE, BIAS)


def assert_close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


@pytest.mark.parametrize("rows", [7, 26, 1000])
def test_values_and_gradients_are_those_of_the_whole(rows: int) -> None:
    assert_close(slopes(by_tiles(rows)), slopes(plainly))


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_meshes_do_not_change_them(axes: tuple[int, int, int]) -> None:
    data, fsdp, tensor = axes
    mesh = MeshSpec(data=data, fsdp=fsdp, tensor=tensor).build()
    spec = jax.sharding.PartitionSpec
    where = [
        jax.sharding.NamedSharding(mesh, axes)
        for axes in (spec(("data", "fsdp")), spec("tensor", "fsdp"), spec())
    ]
    expected = slopes(plainly)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, s) for x, s in zip((X, TABLE, BIAS), where)]
        found = jax.jit(
            jax.value_and_grad(by_tiles(4), argnums=(0, 1, 2), has_aux=True), in_shardings=where
        )(*placed)
        assert_close(jax.device_get(found), expected)


def test_bfloat16_vectors_give_float32_values_and_a_float32_gradient_of_the_table() -> None:
    def total(table: jax.Array, rows: int) -> jax.Array:
        found = vocabulary.score(X.astype(jnp.bfloat16), table, LABELS, rows=rows)
        return jnp.sum(found.nll)

    (tiled, slope), (whole, other) = (
        jax.value_and_grad(total)(jnp.asarray(TABLE), rows) for rows in (7, 1000)
    )
    assert tiled.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(tiled, whole, rtol=1e-5)
    np.testing.assert_allclose(slope, other, atol=0.02 * float(jnp.abs(other).max()))


def test_a_tile_is_all_that_is_in_memory() -> None:
    def temporary(rows: int) -> int:
        shapes = ((8, 1024, 16), (128_000, 16), (8, 1024))
        kinds = (jnp.float32, jnp.float32, jnp.int32)
        arguments = [jax.ShapeDtypeStruct(s, kind) for s, kind in zip(shapes, kinds)]

        def mean(x: jax.Array, table: jax.Array, labels: jax.Array) -> jax.Array:
            return jnp.mean(vocabulary.score(x, table, labels, rows=rows).nll)

        compiled = jax.jit(jax.grad(mean, argnums=(0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1024) < 0.2 * temporary(8192)
    assert temporary(8192) > 8192 * 128_000 * 4


def test_samples_are_drawn_from_the_softmax_by_their_noise_alone() -> None:
    x = np.broadcast_to(X[:1, :1], (1, 40_000, D))
    noise = np.arange(40_000, dtype=np.uint32)[None] * np.uint32(2654435761)
    drawn = np.asarray(vocabulary.sample(x, TABLE[:6], noise, BIAS[:6], rows=9_999))
    odds = np.asarray(jax.nn.softmax(X[0, 0] @ TABLE[:6].T + BIAS[:6]))
    share = np.bincount(drawn[0], minlength=6) / drawn.size
    assert (np.abs(share - odds) < 5 * np.sqrt(odds * (1 - odds) / drawn.size) + 1e-4).all()
    again = vocabulary.sample(x[:, ::-1], TABLE[:6], noise[:, ::-1], BIAS[:6])
    np.testing.assert_array_equal(again[:, ::-1], drawn)

"""Laws of what encoders beside BERT are made of: windows, shared blocks, narrow vectors."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from small_trunks import BERT, KEY, PACKED, PADDED, random_params

from research.models import layers
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify

MODERN = dataclasses.replace(
    BERT,
    depth=4,
    positions="rotary",
    token_types=0,
    window=1,
    global_every=2,
    rope_theta=100.0,
    local_theta=10.0,
    norm_first=True,
    first_norm=False,
    norm_bias=False,
    gated=True,
    bias=False,
    pooler="gelu",
    pooler_norm=True,
    head_bias=False,
)
ALBERT = dataclasses.replace(BERT, depth=3, embed_width=8, shared=True, position_offset=2)
BOTH = pytest.mark.parametrize("spec", [MODERN, ALBERT], ids=["modernbert", "albert"])
KEEPING = pytest.mark.parametrize("remat", [False, True])


def task_of(spec: Spec) -> Classify:
    return Classify(backbone=Transformer(spec), labels=("no", "yes"))


@functools.cache
def learn(spec: Spec) -> Any:
    """The compiled loss of a classifier and its gradients, with dropout."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        mean = task_of(spec).apply({"params": params}, batch, train=True, rngs={"noise": KEY})
        return mean["loss"].total / mean["loss"].count

    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def states(spec: Spec) -> Any:
    """The compiled vectors under and above every block, and what the trunk returns."""

    @jax.jit
    def run(params: Any, batch: dict[str, jax.Array]) -> Any:
        noise, trunk = layers.token_noise(KEY, batch), Transformer(spec)
        kept = trunk.apply({"params": params}, batch, noise=noise, method="layers")
        return kept, trunk.apply({"params": params}, batch, noise=noise)

    return run


def scanned(params: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """The same parameters as those of a stack under `scan`."""
    if spec.shared:
        return params
    blocks = [params[f"block_{i}"] for i in range(spec.depth)]
    # Nothing reads the first norm that a scanned stack has, and an unrolled one has not.
    blocks[0] = blocks[0] | {"attention_norm": {"scale": np.full(spec.width, np.nan, np.float32)}}
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
    return rest | {"blocks": stacked}


@BOTH
def test_packed_equals_padded(spec):
    """Loss and every gradient, dropout on."""
    params = random_params(task_of(spec), train=True)
    expected, slopes = learn(spec)(params, PADDED)
    got, gradients = learn(spec)(params, PACKED)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(slopes))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0), gradients, slopes
    )
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(slopes))


@BOTH
@KEEPING
def test_scan_equals_unrolled(spec, remat):
    params = random_params(Transformer(spec))
    expected, last = states(spec)(params, PADDED)
    np.testing.assert_array_equal(expected[-1], last)
    assert expected.shape == (spec.depth + 1, *PADDED["tokens"].shape, spec.width)
    other = dataclasses.replace(spec, scan=True, remat=remat)
    got, last = states(other)(scanned(params, spec), PADDED)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(last, expected[-1], atol=1e-5, rtol=0)


def test_one_block_serves_all_layers():
    """It computes what as many equal blocks do, and its gradient is the sum of theirs."""
    one = dataclasses.replace(ALBERT, dropout=0.0, attention_dropout=0.0)
    many = dataclasses.replace(one, shared=False)
    params = random_params(task_of(one), train=True)
    trunk = params["backbone"]
    copies = {f"block_{i}": trunk["block_0"] for i in range(one.depth)}
    loss, slopes = learn(one)(params, PADDED)
    expected, parts = learn(many)(params | {"backbone": trunk | copies}, PADDED)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    total = jax.tree.map(lambda *leaves: sum(leaves), *(parts["backbone"][name] for name in copies))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0),
        slopes["backbone"]["block_0"],
        total,
    )


@pytest.mark.parametrize(("window", "every", "reach"), [(2, None, 2), (2, 1, 20), (None, None, 20)])
def test_a_window_is_what_a_token_sees(window, every, reach):
    """Of one block: exactly the tokens at most so far away change what comes out."""
    spec = dataclasses.replace(MODERN, depth=1, window=window, global_every=every)
    tokens = layouts.Example(id=1, tokens=tuple(range(1, 10)))
    batch = layouts.layout([[tokens]], 9)
    params = random_params(Transformer(spec))
    run = jax.jit(lambda batch: Transformer(spec).apply({"params": params}, batch)[0])
    before = run(batch)
    for i in range(9):
        changed = batch["tokens"].at[0, i].set(40)
        moved = jnp.any(run(batch | {"tokens": changed}) != before, axis=-1)
        np.testing.assert_array_equal(moved, np.abs(np.arange(9) - i) <= reach)

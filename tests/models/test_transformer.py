"""Laws of the trunk: what may change its output and what may not."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small_trunks import BERT, KEY, LLAMA, PACKED, PADDED, ROWS, TEXTS, V, random_params

from research.models import attention, layers
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify

BOTH = pytest.mark.parametrize("spec", [BERT, LLAMA], ids=["bert", "llama"])
NOISE = pytest.mark.parametrize("noisy", [False, True], ids=["calm", "dropout"])


def trunk_params(spec: Spec):
    return random_params(Transformer(spec))


@functools.cache
def forward(spec: Spec, noisy: bool):
    """The compiled trunk."""

    @jax.jit
    def vectors(params, batch, key):
        noise = layers.token_noise(key, batch) if noisy else None
        return Transformer(spec).apply({"params": params}, batch, noise=noise)

    return vectors


def run(spec: Spec, params, batch, key=None):
    """The trunk's vectors, with dropout where a key is given."""
    return forward(spec, key is not None)(params, batch, KEY if key is None else key)


def assert_trees_close(got, expected, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest number in the tree."""
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def compare(a, b):
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)

    jax.tree.map(compare, got, expected)


@BOTH
@NOISE
def test_packed_equals_padded(spec, noisy):
    params, key = trunk_params(spec), KEY if noisy else None
    padded = layouts.cut(run(spec, params, PADDED, key), PADDED)
    vectors = run(spec, params, PACKED, key)
    assert np.all(np.isfinite(vectors)), "a row without examples harms nothing"
    packed = layouts.cut(vectors, PACKED)
    assert padded.keys() == packed.keys() == {text.id for text in TEXTS}
    for name, vectors in padded.items():
        np.testing.assert_allclose(packed[name], vectors, atol=1e-5, rtol=0)
    if noisy:
        calm = layouts.cut(run(spec, params, PADDED), PADDED)
        assert np.abs(calm[TEXTS[0].id] - padded[TEXTS[0].id]).max() > 0.1


@BOTH
def test_gradients_packed_equal_padded(spec):
    spec = dataclasses.replace(spec, scan=True)
    # A first token that sees itself alone would tell nothing of queries and keys.
    pool = "mean" if spec.causal else "first"
    task = Classify(backbone=Transformer(spec), labels=("a", "b"), pool=pool)
    params = random_params(task, train=False)

    @jax.jit
    @jax.value_and_grad
    def step(params, batch):
        mean = task.apply({"params": params}, batch, train=True, rngs={"noise": KEY})["loss"]
        return mean.total / mean.count

    padded, packed = step(params, PADDED), step(params, PACKED)
    assert_trees_close(packed, padded)
    for path, leaf in flatten_dict(packed[1], sep="/").items():
        assert np.all(np.isfinite(leaf))
        # A softmax does not feel what is added to all its scores, as a key's bias is.
        assert path.endswith("key/bias") or np.abs(leaf).max() > 1e-5


@BOTH
@NOISE
def test_other_segments_are_bit_equal(spec, noisy):
    """Tokens and types of one example change; not one bit of another's vectors does."""
    params, key = trunk_params(spec), KEY if noisy else None
    changed = dataclasses.replace(
        TEXTS[2],
        tokens=tuple(V - 1 - token for token in TEXTS[2].tokens),
        types=tuple(1 - kind for kind in TEXTS[2].types),
    )
    rows = [[changed if text is TEXTS[2] else text for text in row] for row in ROWS]
    other = layouts.layout(rows, 14)
    before = layouts.cut(run(spec, params, PACKED, key), PACKED)
    after = layouts.cut(run(spec, params, other, key), other)
    for name, vectors in before.items():
        assert np.array_equal(after[name], vectors) == (name != changed.id)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_what_reaches_a_token_by_gradients(causal):
    """Each token has its own row of the table, so the table's gradient says what reached it."""
    spec = dataclasses.replace(BERT, causal=causal)
    params = trunk_params(spec)
    texts = [
        layouts.Example(id=1, tokens=tuple(range(1, 6))),
        layouts.Example(id=2, tokens=tuple(range(6, 10))),
    ]
    batch = layouts.layout([texts], 11)
    direction = jax.random.normal(KEY, (11, spec.width))

    def scores(table):
        changed = params | {"embed": {"table": table}}
        x = Transformer(spec).apply({"params": changed}, batch)
        return jnp.sum(x[0] * direction, axis=-1)  # [T]

    gradient = jax.jit(jax.jacrev(scores))(params["embed"]["table"])  # [T, V, D]
    reached = np.any(np.asarray(gradient) != 0, axis=-1)[:9, 1:10]
    segment = np.repeat([0, 1], [5, 4])
    expected = segment[:, None] == segment[None, :]
    if causal:
        expected &= np.arange(9)[:, None] >= np.arange(9)[None, :]
    np.testing.assert_array_equal(reached, expected)


@BOTH
def test_scan_equals_unrolled(spec):
    params = trunk_params(spec)
    blocks = [params[f"block_{i}"] for i in range(spec.depth)]
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    stacked = rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
    scanned = dataclasses.replace(spec, scan=True)
    shapes = jax.eval_shape(Transformer(scanned).init, KEY, PADDED)["params"]
    assert jax.tree.map(lambda x: x.shape, stacked) == jax.tree.map(lambda x: x.shape, shapes)
    assert_trees_close(run(scanned, stacked, PACKED, KEY), run(spec, params, PACKED, KEY))


@pytest.mark.parametrize(
    "spec",
    [dataclasses.replace(BERT, depth=1), dataclasses.replace(LLAMA, scan=True)],
    ids=["unrolled", "scan"],
)
def test_remat_gives_the_same_gradients(spec):
    params = trunk_params(spec)

    def gradient(spec):
        @jax.jit
        def loss(params):
            noise = layers.token_noise(KEY, PACKED)
            x = Transformer(spec).apply({"params": params}, PACKED, noise=noise)
            return jnp.mean(x**3)

        return jax.grad(loss)(params)

    expected = gradient(spec)
    for remat in (True, "attention", "mlp") if spec.scan else (True,):
        found = gradient(dataclasses.replace(spec, remat=remat))
        assert_trees_close(found, expected, 1e-6)


def test_what_remat_names_is_not_computed_again():
    """Counted in the program of the gradient before the compiler sees it: products."""

    def products(remat):
        spec = dataclasses.replace(LLAMA, depth=1, remat=remat)
        params = trunk_params(LLAMA)

        def loss(params):
            return jnp.mean(Transformer(spec).apply({"params": params}, PACKED) ** 3)

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(" dot_general[")

    # Again in the backward pass: query, key, value, scores, mean, out, up and gate.
    assert products(True) - products(False) == 8
    assert products(True) - products("mlp") == 2
    assert products(True) - products("attention") == 4


def test_grouped_heads_equal_repeated_heads():
    """Queries 0 and 1 share the first key and value, 2 and 3 the second."""
    params = trunk_params(LLAMA)
    flat = flatten_dict(params, sep="/")
    for path, kernel in flat.items():
        if path.endswith(("key/kernel", "value/kernel")):
            grouped = kernel.reshape(16, 2, 4)
            flat[path] = jnp.repeat(grouped, 2, axis=1).reshape(16, 16)
    full = dataclasses.replace(LLAMA, kv_heads=None)
    repeated = unflatten_dict(flat, sep="/")
    assert_trees_close(run(LLAMA, params, PACKED, KEY), run(full, repeated, PACKED, KEY))


def test_rotary_sees_distances_only():
    params = trunk_params(LLAMA)
    moved = PACKED | {"positions": PACKED["positions"] + 100}
    stretched = PACKED | {"positions": PACKED["positions"] * 3}
    x = run(LLAMA, params, PACKED)
    np.testing.assert_allclose(run(LLAMA, params, moved), x, atol=2e-4, rtol=0)
    assert np.abs(run(LLAMA, params, stretched) - x).max() > 0.05


def test_rotation_is_a_product_of_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 300, 2]])
    turned = np.asarray(layers.rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions), 100.0))
    for b, t, h, k in np.ndindex(2, 5, 3, 4):
        angle = positions[b, t] * 100.0 ** (-k / 4)
        expected = complex(x[b, t, h, k], x[b, t, h, k + 4]) * np.exp(1j * angle)
        got = complex(turned[b, t, h, k], turned[b, t, h, k + 4])
        assert abs(got - expected) < 1e-4


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_by_brute_force(groups):
    rng = np.random.default_rng(groups)
    query = rng.normal(size=(2, 6, 4, 3))
    key, value = rng.normal(size=(2, 2, 6, groups, 3))
    mask = rng.random((2, 6, 6)) < 0.5
    mask |= np.eye(6, dtype=bool)
    expected = np.zeros_like(query)
    for b, t, h in np.ndindex(2, 6, 4):
        seen = [s for s in range(6) if mask[b, t, s]]
        g = h * groups // 4
        weights = [math.exp(query[b, t, h] @ key[b, s, g] / math.sqrt(3)) for s in seen]
        for s, weight in zip(seen, weights):
            expected[b, t, h] += weight / sum(weights) * value[b, s, g]
    arrays = (jnp.asarray(a, jnp.float32) for a in (query, key, value))
    positions = np.zeros(mask.shape[:2], np.int32)
    found = attention.attend(*arrays, attention.Seen(jnp.asarray(mask), positions))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)

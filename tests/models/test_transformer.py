"""Laws of the trunk: what may change its output and what may not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from research.models import layers
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify

V = 50
BERT = Spec(
    vocab_size=V,
    width=16,
    depth=2,
    heads=4,
    hidden=24,
    max_positions=16,
    token_types=2,
    dropout=0.3,
    attention_dropout=0.2,
    dtype="float32",
)
LLAMA = dataclasses.replace(
    BERT,
    kv_heads=2,
    causal=True,
    positions="rotary",
    token_types=0,
    norm="rms",
    norm_first=True,
    embed_norm=False,
    activation="silu",
    gated=True,
    bias=False,
)
BOTH = pytest.mark.parametrize("spec", [BERT, LLAMA], ids=["bert", "llama"])
NOISE = pytest.mark.parametrize("noisy", [False, True], ids=["calm", "dropout"])
KEY = jax.random.key(5)
TEXTS = layouts.examples([5, 3, 7, 1, 4], vocab_size=V)
# Of one shape, so that each program is compiled once.
PADDED = layouts.layout([[text] for text in TEXTS], 14, places=3)
ROWS = [[TEXTS[3], TEXTS[2], TEXTS[4]], [], [TEXTS[1], TEXTS[0]], [], []]
PACKED = layouts.layout(ROWS, 14)


@pytest.fixture(autouse=True)
def full_precision():
    """Some accelerators multiply float32 matrices with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def random_params(module, seed: int = 0, **options):
    """Weights that make every parameter matter: none zero, none one."""
    shapes = jax.eval_shape(
        lambda key: module.init({"params": key, "noise": key}, PADDED, **options), KEY
    )
    rng = np.random.default_rng(seed)
    flat = {
        path: path.endswith("scale") + rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(shapes["params"], sep="/").items()
    }
    return unflatten_dict(flat, sep="/")


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

    assert_trees_close(gradient(dataclasses.replace(spec, remat=True)), gradient(spec), 1e-6)


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
    np.testing.assert_allclose(layers.attend(*arrays, mask), expected, atol=1e-5, rtol=0)


def assert_binomial(count: int, trials: int, rate: float) -> None:
    """Within five standard deviations."""
    assert abs(count - trials * rate) < 5 * math.sqrt(trials * rate * (1 - rate)), count / trials


def assert_independent(a: np.ndarray, b: np.ndarray, keep: float) -> None:
    """Two masks agree as often as two unrelated ones do."""
    agreement = keep**2 + (1 - keep) ** 2
    assert_binomial(int(np.sum(a == b)), a.size, agreement)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
    batch = layouts.layout([[text] for text in layouts.examples([16] * 16, vocab_size=V)], 16)
    x = layers.dropout(jnp.ones((16, 16, 256)), rate, layers.token_noise(KEY, batch))
    assert_binomial(int(np.sum(x != 0)), x.size, 1 - rate)
    np.testing.assert_allclose(x[x != 0], 1 / (1 - rate), rtol=1e-6)
    kept = np.asarray(x != 0).reshape(256, 256)
    for lanes in kept.T:
        assert_binomial(int(lanes.sum()), 256, 1 - rate)


def test_attention_dropout_keeps_its_share_and_is_independent():
    """Values are one-hot over the keys, so that the output shows the probabilities."""
    T, H, rate = 32, 4, 0.3
    batch = layouts.layout([[text] for text in layouts.examples([T] * 4, vocab_size=V)], T)
    zeros = jnp.zeros((4, T, H, T))
    value = jnp.broadcast_to(jnp.eye(T)[None, :, None, :], zeros.shape)
    mask = layers.attention_mask(batch, causal=False)
    noise = layers.token_noise(KEY, batch)
    shown = layers.attend(
        zeros, zeros, value, mask, rate=rate, noise=noise, positions=batch["positions"]
    )
    kept = np.asarray(shown) != 0  # [B, T query, H, T key]
    np.testing.assert_allclose(np.asarray(shown)[kept], 1 / (T * (1 - rate)), rtol=1e-5)
    assert_binomial(int(kept.sum()), kept.size, 1 - rate)
    for axis in range(4):
        parts = np.moveaxis(kept, axis, 0)
        for a, b in itertools.pairwise(parts):
            assert_independent(a, b, 1 - rate)


def test_masks_of_layers_sites_examples_and_steps_are_independent(monkeypatch):
    spec = dataclasses.replace(BERT, width=128, dropout=0.4, depth=3)
    batch = layouts.layout([[text] for text in layouts.examples([12] * 8, vocab_size=V)], 12)
    task = Classify(backbone=Transformer(spec), labels=("a", "b"), dropout=0.4)
    params = random_params(task, train=False)
    original = layers.dropout

    @jax.jit
    def masks_of(key):
        found = []

        def record(x, rate, noise):
            found.append(original(jnp.ones_like(x), rate, noise) != 0)
            return original(x, rate, noise)

        with monkeypatch.context() as patch:
            patch.setattr(layers, "dropout", record)
            task.apply({"params": params}, batch, train=True, rngs={"noise": key})
        return found

    steps = [masks_of(jax.random.fold_in(KEY, step)) for step in range(2)]
    masks = [np.asarray(mask) for step in steps for mask in step]
    # Each step: the embedding, two branches in each of three blocks, and the head.
    sites = [mask for mask in masks if mask.shape == (8, 12, 128)]
    heads = [mask for mask in masks if mask.shape == (8, 1, 128)]
    assert len(sites) == 2 * (1 + 2 * 3) and len(heads) == 2
    for mask in masks:
        assert_binomial(int(mask.sum()), mask.size, 0.6)
    for a, b in itertools.combinations(sites, 2):
        assert_independent(a, b, 0.6)
    for head, mask in itertools.product(heads, sites):
        assert_independent(head, mask[:, :1], 0.6)
    for mask in sites:
        for a, b in itertools.combinations(mask, 2):
            assert_independent(a, b, 0.6)  # examples
        assert_independent(mask[:, 1:], mask[:, :-1], 0.6)  # positions
        assert_independent(mask[:, :, 1:], mask[:, :, :-1], 0.6)  # lanes


def test_noise_belongs_to_example_and_position():
    padded = layouts.cut(layers.token_noise(KEY, PADDED), PADDED)
    packed = layouts.cut(layers.token_noise(KEY, PACKED), PACKED)
    for name, noise in padded.items():
        np.testing.assert_array_equal(packed[name], noise)
    everywhere = np.concatenate(list(padded.values()))
    assert len(np.unique(everywhere)) == everywhere.size
    other = layers.token_noise(jax.random.fold_in(KEY, 1), PADDED)
    assert not np.any(np.asarray(other == layers.token_noise(KEY, PADDED)))


def test_hash_is_a_bijection_that_spreads_every_bit():
    values = jnp.arange(2**16, dtype=jnp.uint32) * jnp.uint32(65537)
    assert len(np.unique(layers.mix(values))) == values.size
    values = jax.random.bits(KEY, 2**16, jnp.uint32)
    hashed = np.asarray(layers.mix(values))
    for bit in range(32):
        flipped = np.asarray(layers.mix(values ^ jnp.uint32(1 << bit))) ^ hashed
        for out in range(32):
            share = np.mean((flipped >> out) & 1)
            assert 0.45 < share < 0.55, (bit, out, share)

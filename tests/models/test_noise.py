"""Noise: its rate, its independence, and that it belongs to an example wherever that lies."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from small_trunks import BERT, KEY, PACKED, PADDED, V, random_params

from research.models import attention, layers
from research.models.transformer import Transformer
from research.tasks.classify import Classify


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
    mask = attention.attention_mask(batch, causal=False)
    noise = layers.token_noise(KEY, batch)
    seen = attention.Seen(mask, batch["positions"])
    shown = attention.attend(zeros, zeros, value, seen, rate=rate, noise=noise)
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
    task = Classify(backbone=Transformer(spec), labels=("a", "b"), dropout=0.4, pool="mean")
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

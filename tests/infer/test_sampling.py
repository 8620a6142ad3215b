"""What may be drawn, against plain numpy; how often it is, against the distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import ConfigError
from research.infer.sampling import Sampling, choose, filtered, penalised

LOGITS = np.random.default_rng(0).normal(0, 2, (6, 11)).astype(np.float32)


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Which tokens of one row may be drawn, one at a time from the best on."""
    p = np.exp(logits.astype(np.float64) / sampling.temperature)
    order = np.argsort(-p)[: sampling.top_k]
    p = p / p[order].sum()
    kept, total = [], 0.0
    for token in order:
        if total < sampling.top_p:
            kept.append(token)
        total += p[token]
    mask = np.zeros(len(p), bool)
    mask[[token for token in kept if p[token] >= sampling.min_p * p[order[0]]]] = True
    return mask


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1},
        {"top_k": 4},
        {"top_k": 50},
        {"top_p": 0.05},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.7, "min_p": 0.2},
    ],
)
def test_what_remains_is_as_in_numpy(fields, temperature):
    sampling = Sampling(temperature=temperature, **fields)
    found = np.asarray(filtered(jnp.asarray(LOGITS), sampling))
    expected = np.stack([reference(row, sampling) for row in LOGITS])
    np.testing.assert_array_equal(found > -np.inf, expected)
    np.testing.assert_allclose(found[expected], LOGITS[expected] / temperature, rtol=1e-6)


def test_frequencies_match_the_distribution():
    """Pearson's chi-square of 20,000 draws stays below the value that one in 10^6 exceeds."""
    draws, sampling = 20000, Sampling(temperature=0.8, top_k=6, top_p=0.95)
    logits = jnp.asarray(LOGITS[:1])
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = np.asarray(choose(jnp.tile(logits, (draws, 1)), keys, sampling))
    kept = reference(LOGITS[0], sampling)
    p = np.where(kept, np.exp(LOGITS[0].astype(np.float64) / 0.8), 0)
    expected = draws * p / p.sum()
    counts = np.bincount(drawn, minlength=len(p))
    assert counts[~kept].sum() == 0 and kept.sum() > 2
    assert (((counts - expected) ** 2)[kept] / expected[kept]).sum() < 36
    other = choose(jnp.tile(logits, (draws, 1)), keys[::-1], sampling)
    np.testing.assert_array_equal(other[::-1], drawn)


def test_top_1_is_greedy():
    keys = jax.random.split(jax.random.key(1), len(LOGITS))
    greedy = choose(jnp.asarray(LOGITS), keys, Sampling(temperature=0.0))
    np.testing.assert_array_equal(greedy, LOGITS.argmax(-1))
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        found = choose(jnp.asarray(LOGITS), keys, Sampling(temperature=3.0, **fields))
        np.testing.assert_array_equal(found, greedy)


def test_what_was_seen_becomes_less_probable():
    seen = np.random.default_rng(1).random(LOGITS.shape) < 0.5
    found = np.asarray(penalised(jnp.asarray(LOGITS), jnp.asarray(seen), 1.5))
    np.testing.assert_array_equal(found[~seen], LOGITS[~seen])
    assert (found[seen] < LOGITS[seen]).all()
    up, down = seen & (LOGITS > 0), seen & (LOGITS < 0)
    np.testing.assert_allclose(found[up], LOGITS[up] / 1.5, rtol=1e-6)
    np.testing.assert_allclose(found[down], LOGITS[down] * 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected a number from 0 up"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected a positive integer"),
        ({"top_p": 0.0}, r"top_p is 0.0, expected a number in \(0, 1\]"),
        ({"min_p": 1.5}, r"min_p is 1.5, expected a number in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected a number above 0"),
        ({"temperature": 0.0, "top_k": 5}, "top_k, top_p and min_p would do nothing"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        Sampling(**fields)

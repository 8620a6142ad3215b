"""Classification: weights and smoothing against their formulas, pooling against a loop."""

from __future__ import annotations

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import initialize, losses
from research.models.pooling import Pool, pool
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify

EXAMPLES: Any = None  # Classify reads all it needs from the outputs.
SPEC = Spec(vocab_size=30, width=8, depth=1, heads=2, hidden=16, max_positions=16)


def batch() -> dict[str, np.ndarray]:
    """Two rows of 8 tokens: lengths 3, 4 and 6; one empty place."""
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]])
    made = {
        "tokens": np.arange(16).reshape(2, 8) + 5,
        "segments": segments,
        "positions": np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]]),
        "ids": np.array([[0, 1], [2, -1]]),
        "starts": np.array([[0, 3], [0, 0]]),
        "lengths": np.array([[3, 4], [6, 0]]),
        "labels": np.array([[0, 2], [1, 0]]),
    }
    rows = {name: value.astype(np.int32) for name, value in made.items()}
    return rows | {"weights": (rows["ids"] >= 0).astype(np.float32)}


def test_cross_entropy_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 7)).astype(np.float32), rng.integers(0, 7, 5)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    for smoothing in (0.0, 0.2):
        target = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
        expected = -(target * np.log(p)).sum(-1)
        found = losses.cross_entropy(logits, labels, smoothing=smoothing)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(losses.cross_entropy(jnp.zeros(2), jnp.int32(0))) == pytest.approx(np.log(2))


def test_pools_equal_a_loop() -> None:
    rows = batch()
    x = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    first, last, mean = (np.asarray(pool(x, rows, how)) for how in get_args(Pool))
    for b, m in ((0, 0), (0, 1), (1, 0)):
        start, length = rows["starts"][b, m], rows["lengths"][b, m]
        np.testing.assert_array_equal(first[b, m], x[b, start])
        np.testing.assert_array_equal(last[b, m], x[b, start + length - 1])
        np.testing.assert_allclose(mean[b, m], x[b, start : start + length].mean(0), atol=1e-6)
    np.testing.assert_array_equal(mean[1, 1], 0)


def test_label_weights_weigh_examples_and_not_accuracy() -> None:
    rows = batch()
    plain = Classify(backbone=Transformer(SPEC), labels=("a", "b", "c"))
    params = {"params": initialize.initialize(plain, rows, jax.random.key(0))}
    values = losses.cross_entropy(plain.apply(params, rows, method="logits"), rows["labels"])
    weights = np.array([1.0, 4.0, 0.5])[rows["labels"]] * rows["weights"]
    weighted = plain.clone(label_weights=(1.0, 4.0, 0.5)).apply(params, rows, train=False)
    np.testing.assert_allclose(weighted["loss"].total, (values * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(weighted["loss"].count, weights.sum(), rtol=1e-6)
    assert float(weighted["accuracy"].count) == 3


def test_decode_names_the_likeliest_label() -> None:
    task = Classify(labels=("no", "yes"))
    (told,) = task.decode({"probabilities": np.array([[0.25, 0.75]])}, EXAMPLES)
    assert told == {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}


def test_score_counts_and_names_the_most_confident_mistakes() -> None:
    task = Classify(labels=("no", "yes"))
    outputs = {
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.01, 0.99], [0.6, 0.4]]),
        "labels": np.array([0, 0, 0, 1]),
        "ids": np.array([10, 11, 12, 13]),
    }
    numbers, details = task.score({"loss": 1.0}, outputs, EXAMPLES)
    assert details["confusion"] == [[1, 2], [1, 0]]
    assert numbers["loss"] == 1.0
    assert [mistake["id"] for mistake in details["mistakes"]] == [12, 11, 13]
    assert details["mistakes"][0]["prediction"] == "yes"
    assert details["mistakes"][0]["probability"] == pytest.approx(0.99)

"""Contrastive losses against their definitions, written as loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import contrastive

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(6, 9)).astype(np.float32)
KIND = RNG.integers(0, 3, (6, 9))
KIND[0], KIND[1], KIND[2] = 0, 1, 2  # nothing at all; only positives; only negatives
POSITIVE, NEGATIVE = KIND == 1, KIND == 2


def expected(of_one) -> tuple[np.ndarray, np.ndarray]:
    """A loop over queries: the mean over positives, and whether there is one."""
    values = []
    for scores, positive, negative in zip(SCORES.astype(float), POSITIVE, NEGATIVE):
        found = [of_one(s, scores[positive], scores[negative]) for s in scores[positive]]
        values.append(np.mean(found) if found else 0.0)
    return np.array(values), POSITIVE.any(1)


def test_info_nce_is_its_definition() -> None:
    def one(s, positives, negatives):
        return -np.log(np.exp(s) / (np.exp(s) + np.exp(negatives).sum()))

    values, has = contrastive.info_nce(SCORES, POSITIVE, NEGATIVE)
    np.testing.assert_allclose(values, expected(one)[0], atol=1e-6)
    np.testing.assert_array_equal(has, expected(one)[1])
    alone = contrastive.info_nce(jnp.zeros(5), jnp.arange(5) == 0, jnp.arange(5) > 0)[0]
    assert float(alone) == pytest.approx(np.log(5))


def test_supcon_is_its_definition() -> None:
    def one(s, positives, negatives):
        return -np.log(np.exp(s) / (np.exp(positives).sum() + np.exp(negatives).sum()))

    values, has = contrastive.supcon(SCORES, POSITIVE, NEGATIVE)
    np.testing.assert_allclose(values, expected(one)[0], atol=1e-6)
    np.testing.assert_array_equal(has, expected(one)[1])


@pytest.mark.parametrize("hardest", [True, False])
def test_triplet_is_its_definition_in_distances(hardest: bool) -> None:
    vectors = RNG.normal(size=(10, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    positive, negative = np.arange(10) == 1, np.arange(10) > 1
    values, has = contrastive.triplet(
        (vectors @ vectors[0]).astype(np.float32), positive, negative, margin=0.4, hardest=hardest
    )
    near = ((vectors[0] - vectors[1]) ** 2).sum()
    far = ((vectors[0] - vectors[2:]) ** 2).sum(1)
    gaps = np.maximum(0, 0.4 + near - far)
    np.testing.assert_allclose(values, gaps.max() if hardest else gaps.mean(), atol=1e-5)
    assert bool(has)
    nothing = np.zeros(10, bool)
    for masks in ((positive, nothing), (nothing, negative)):
        assert not contrastive.triplet(jnp.ones(10), *masks, margin=0.4, hardest=hardest)[1]


def test_cosine_regression_is_its_definition() -> None:
    targets = RNG.random(6).astype(np.float32)
    values, has = contrastive.cosine_regression(SCORES, POSITIVE, targets)
    for value, scores, positive, target in zip(values, SCORES, POSITIVE, targets):
        gaps = (scores[positive] - target) ** 2
        np.testing.assert_allclose(value, gaps.mean() if len(gaps) else 0.0, rtol=1e-5)
    np.testing.assert_array_equal(has, POSITIVE.any(1))


@pytest.mark.parametrize("loss", [contrastive.info_nce, contrastive.supcon])
def test_gradients_are_finite_where_there_is_nothing(loss) -> None:
    def total(scores):
        values, has = loss(scores, POSITIVE, NEGATIVE)
        return jnp.sum(jnp.where(has, values, 0.0))

    gradient = jax.grad(total)(jnp.asarray(SCORES) * 1e3)
    assert np.isfinite(gradient).all()
    assert not gradient[0].any()

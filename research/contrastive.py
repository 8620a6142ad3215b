"""Losses that compare examples of a batch with each other: unreduced values, as in losses.py.

All take scores [..., P] of queries against P candidates, and masks of the same shape that say which
candidates belong to a query. They return a value a query, [...], and which queries have one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, so that nothing turns NaN where a query has no candidate at all.
NOTHING = -1e30


def info_nce(
    scores: jax.Array, positive: jax.Array, negative: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE in nats (van den Oord et al., 2018): float32 [...], bool [...].

    -log(exp(s_p) / (exp(s_p) + sum over the negatives of exp(s_n))), averaged over the positives p
    of a query. With one positive and n negatives of equal score it is log(1 + n).
    """
    scores = scores.astype(jnp.float32)
    rest = jax.nn.logsumexp(jnp.where(negative, scores, NOTHING), axis=-1, keepdims=True)
    return mean_over(positive, jax.nn.softplus(rest - scores))


def supcon(
    scores: jax.Array, positive: jax.Array, negative: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Supervised contrastive loss in nats (Khosla et al., 2020, L_out): float32 [...], bool [...].

    As `info_nce`, but the other positives of a query stand in the denominator too.
    """
    scores = scores.astype(jnp.float32)
    all_scores = jnp.where(positive | negative, scores, NOTHING)
    total = jax.nn.logsumexp(all_scores, axis=-1, keepdims=True)
    return mean_over(positive, total - scores)


def triplet(
    similarity: jax.Array, positive: jax.Array, negative: jax.Array, *, margin: float, hardest: bool
) -> tuple[jax.Array, jax.Array]:
    """Triplet loss (Schroff et al., 2015) of unit vectors, given their cosines [..., P].

    max(0, margin + d(positive) - d(negative)) with squared Euclidean distances d = 2 - 2 cos,
    averaged over positives, and over the negatives or, with `hardest`, of the nearest negative
    alone (Hermans et al., 2017). Returns float32 [...] and bool [...].
    """
    similarity = similarity.astype(jnp.float32)
    total = jnp.sum(jnp.where(positive, similarity, 0.0), axis=-1, keepdims=True)
    near = total / jnp.maximum(jnp.sum(positive, axis=-1, keepdims=True), 1)
    if hardest:
        most = jnp.max(jnp.where(negative, similarity, NOTHING), axis=-1, keepdims=True)
        values = jax.nn.relu(margin + 2.0 * (most - near))[..., 0]
        has = jnp.any(negative, axis=-1)
    else:
        values, has = mean_over(negative, jax.nn.relu(margin + 2.0 * (similarity - near)))
    return values, has & jnp.any(positive, axis=-1)


def cosine_regression(
    similarity: jax.Array, positive: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared distance of a pair's cosine from its target (Reimers & Gurevych, 2019).

    `similarity` and `positive` [..., P], `targets` [...] in [-1, 1]. float32 [...], bool [...].
    """
    gaps = similarity.astype(jnp.float32) - targets.astype(jnp.float32)[..., None]
    return mean_over(positive, jnp.square(gaps))


def mean_over(mask: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means along the last axis of what the mask takes, 0 of nothing; and whether it takes any."""
    count = jnp.sum(mask, axis=-1)
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=-1)
    return total / jnp.maximum(count, 1).astype(values.dtype), count > 0

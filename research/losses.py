"""Losses as pure array functions: unreduced values out, so that the caller owns the mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Negative log-likelihood in nats: float [..., C], int [...] -> float32 [...].

    `smoothing` spreads that much of the target evenly over all classes (Szegedy et al., 2016), so
    cross_entropy([0, 0], 0) is log 2 whatever the smoothing.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    hit = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    target = hit * (1.0 - smoothing) + smoothing / logits.shape[-1]
    return -jnp.sum(target * log_probabilities, axis=-1)

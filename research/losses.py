"""Losses as pure array functions: unreduced values out, so that the caller owns the mean."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Negative log-likelihood in nats: float [..., C], int [...] -> float32 [...].

    `smoothing` spreads that much of the target evenly over all classes (Szegedy et al., 2016), so
    cross_entropy([0, 0], 0) is log 2 whatever the smoothing.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    hit = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    target = hit * (1.0 - smoothing) + smoothing / logits.shape[-1]
    return -jnp.sum(target * log_probabilities, axis=-1)


def focal(
    logits: jax.Array, labels: jax.Array, gamma: float, *, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy times (1 - p)^gamma, p the label's probability (Lin et al., 2017).

    float [..., C], int [...] -> float32 [...]; gamma 0 is cross_entropy.
    """
    values = cross_entropy(logits, labels, smoothing=smoothing)
    # Kept off 0, where the gradient of a power below 1 is infinite.
    miss = jnp.maximum(-jnp.expm1(-cross_entropy(logits, labels)), 1e-12)
    return miss**gamma * values


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, positive_weights: jax.Array
) -> jax.Array:
    """Of each of C yes-or-no questions: float [..., C], 0 or 1 [..., C], [C] -> float32 [..., C].

    A yes weighs `positive_weights`, a no 1.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    weights = positive_weights.reshape((1,) * (logits.ndim - 1) + (-1,))
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(weights * targets * yes + (1.0 - targets) * no)


def balanced_weights(counts: Sequence[int]) -> npt.NDArray[np.float64]:
    """Weights in inverse proportion to counts, float64 [C]: every class has the same total.

    Those of scikit-learn's class_weight="balanced": balanced_weights([1, 3]) is [2, 2/3].
    """
    numbers = np.asarray(counts, np.float64)
    return numbers.sum() / (len(numbers) * numbers)


def effective_weights(counts: Sequence[int], beta: float) -> npt.NDArray[np.float64]:
    """Weights by the inverse effective number (1 - beta^n) / (1 - beta), float64 [C], of mean 1.

    Cui et al. (2019); beta 0 gives every class 1, beta towards 1 `balanced_weights` but for scale.
    """
    weights = (1.0 - beta) / -np.expm1(np.asarray(counts, np.float64) * np.log(beta or 1e-300))
    return weights / weights.mean()

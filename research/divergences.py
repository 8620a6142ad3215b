"""Distances between distributions, as pure array functions: of probabilities, and of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) in nats of the softmaxes of two logits, float [..., C] each: float32 [...]."""
    log_p = jax.nn.log_softmax(p.astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(q.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def symmetric_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) + KL(q || p) in nats of the softmaxes of two logits: float32 [...]."""
    return kl(p, q) + kl(q, p)


def coral(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """|C_1 - C_2|^2 / (4 D^2), Frobenius, of the covariances of parts of x (Sun & Saenko, 2016).

    float [N, D]; `first` and `second` are 0 or 1, float32 [N]. A part needs two rows: else 0.
    """
    x = x.astype(jnp.float32)

    def covariance(member: jax.Array) -> jax.Array:
        count = jnp.sum(member)
        mean = jnp.einsum("n,nd->d", member, x) / jnp.maximum(count, 1.0)
        centred = (x - mean[None]) * member[:, None]
        product = jnp.einsum("nd,ne->de", centred, centred, precision="highest")
        return product / jnp.maximum(count - 1.0, 1.0)

    gap = jnp.sum(jnp.square(covariance(first) - covariance(second))) / (4.0 * x.shape[-1] ** 2)
    return jnp.where((jnp.sum(first) > 1) & (jnp.sum(second) > 1), gap, 0.0)


def mmd(
    x: jax.Array, first: jax.Array, second: jax.Array, kernels: int = 5, step: float = 2.0
) -> jax.Array:
    """Squared maximum mean discrepancy of two parts of x, of several Gaussian kernels (Gretton et
    al., 2012; Long et al., 2015), with a pair of equal rows counted: never negative.

    float [N, D]; `first` and `second` are 0 or 1, float32 [N]. Bandwidths are the mean squared
    distance of all pairs, as a constant, times powers of `step` around 1. An empty part gives 0.
    """
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1)
    inner = jnp.einsum("nd,md->nm", x, x, precision="highest")
    distance = jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * inner, 0.0)
    member = first + second
    pairs = member[:, None] * member[None, :]
    count = jnp.sum(member)
    mean = jnp.sum(distance * pairs) / jnp.maximum(count * (count - 1.0), 1.0)
    mean = jax.lax.stop_gradient(jnp.maximum(mean, 1e-12))
    scales = [step ** (i - kernels // 2) for i in range(kernels)]
    kernel = sum(jnp.exp(-distance / (mean * scale)) for scale in scales)
    share = first / jnp.maximum(jnp.sum(first), 1.0) - second / jnp.maximum(jnp.sum(second), 1.0)
    gap = jnp.einsum("n,nm,m->", share, kernel, share, precision="highest")
    return jnp.where((jnp.sum(first) > 0) & (jnp.sum(second) > 0), jnp.maximum(gap, 0.0), 0.0)
